// Whether kernels fetch ahead what their schedules name: 1 except on processors whose own prefetch finds these streams, where more
// would only get in the way. Decided as the library is loaded; TILEWRIGHT_PREFETCH=0 or 1 decides otherwise. Results are the same.
#pragma once
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

extern "C" {
__attribute__((visibility("hidden"))) int tw_ahead = 1;
}

// By vendor and signature (leaf 1 of cpuid: family and model). Zen 4: a layer at one row takes 5 to 18% longer with prefetch, attention
// 1.4 x. Zen 5 and whatever is not known: as schedules were tuned.
static inline int tw_ahead_pays(const char *vendor, unsigned signature) {
  const unsigned family = (signature >> 8 & 15) + (signature >> 20 & 255), tens = signature >> 16 & 15;
  const int zen4 = family == 0x19 && (tens == 1 || tens == 6 || tens == 7 || tens == 10);
  return strcmp(vendor, "AuthenticAMD") || !zen4;
}

__attribute__((constructor)) static void tw_ahead_decide() {
  const char *told = getenv("TILEWRIGHT_PREFETCH");
  if (told && (told[0] == '0' || told[0] == '1') && !told[1]) {
    tw_ahead = told[0] == '1';
    return;
  }
#if defined(__x86_64__) || defined(__i386__)
  unsigned signature, b, c, d, most;
  char vendor[13] = {0};
  if (!__get_cpuid(0, &most, &b, &c, &d)) return;
  memcpy(vendor, &b, 4), memcpy(vendor + 4, &d, 4), memcpy(vendor + 8, &c, 4);
  if (__get_cpuid(1, &signature, &b, &c, &d)) tw_ahead = tw_ahead_pays(vendor, signature);
#endif
}
