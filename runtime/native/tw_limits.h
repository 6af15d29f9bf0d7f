// What the machine can do at most: read bandwidth and peak rates of the multiply-add forms that the build has.
//
// Exported by the library of each level: `tw_limits(threads, mib, seconds, out[4])`, where out receives GB/s read from memory,
// f32 GFLOP/s, bf16 GFLOP/s, int8 GOP/s (a rate that the level does not have stays 0); and `tw_bandwidth(threads, buffer, bytes,
// seconds)`, the GB/s alone, on the caller's memory: quick enough to be taken between the parts of a measurement.
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__AVX512F__)
#define TWL_BYTES 64
#define TWL_R "%%zmm"
#elif defined(__AVX2__)
#define TWL_BYTES 32
#define TWL_R "%%ymm"
#else
#define TWL_BYTES 16
#define TWL_R "%%xmm"
#endif

typedef long long twl_lanes __attribute__((vector_size(TWL_BYTES)));
typedef float twl_floats __attribute__((vector_size(TWL_BYTES)));

// One thread's share, eight streams of one register each; `ahead` bytes are prefetched.
static inline long long twl_read(const char* p, const char* end, size_t ahead) {
  twl_lanes a[8];
  memset(a, 0, sizeof a);
  for (; p < end; p += 8 * TWL_BYTES) {
    for (int i = 0; i < 8 * TWL_BYTES && ahead; i += 64) __builtin_prefetch(p + ahead + i);
    for (int i = 0; i < 8; i++) a[i] += *(const twl_lanes*)(p + TWL_BYTES * i);
  }
  for (int i = 1; i < 8; i++) a[0] += a[i];
  return a[0][0];
}

static double twl_bandwidth(int threads, const char* buffer, size_t bytes, double seconds) {
  double best = 0, start = omp_get_wtime();
  volatile long long sink = 0;
  const size_t ahead[3] = {0, 1024, 4096};
  for (int pass = 0; pass < 3 || (omp_get_wtime() - start < seconds && pass < 60); pass++) {
    long long total = 0;
    double t = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
      size_t share = bytes / omp_get_num_threads() / 4096 * 4096, from = share * omp_get_thread_num();
      total += twl_read(buffer + from, buffer + from + share, ahead[pass % 3]);
    }
    t = omp_get_wtime() - t;
    sink = sink + total;
    if (bytes / t * 1e-9 > best) best = bytes / t * 1e-9;
    if (omp_get_wtime() - start > 2 * seconds) break;
  }
  return best;
}

// Twelve independent chains: more than latency times units. Registers 13 and 14 are the factors.
#if defined(__x86_64__) && TWL_BYTES >= 32
#define TWL_1(I, N) I " " TWL_R "13, " TWL_R "14, " TWL_R #N "\n\t"
#define TWL_12(I) TWL_1(I, 0) TWL_1(I, 1) TWL_1(I, 2) TWL_1(I, 3) TWL_1(I, 4) TWL_1(I, 5) TWL_1(I, 6) TWL_1(I, 7) TWL_1(I, 8) TWL_1(I, 9) TWL_1(I, 10) TWL_1(I, 11)
#define TWL_STEP(I) __asm__ volatile(TWL_12(I) ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11")
#define TWL_ZERO __asm__ volatile("vpxor %%xmm13, %%xmm13, %%xmm13\n\tvpxor %%xmm14, %%xmm14, %%xmm14" ::: "xmm13", "xmm14")
#else
#define TWL_ZERO (void)0
#endif

// `ops` of one STEP; rounds grow until the time is worth measuring; the best of three is kept.
#define TWL_PEAK(NAME, STEP, OPS)                                                          \
  static double NAME(int threads, double seconds) {                                        \
    double best = 0;                                                                       \
    for (long rounds = 20000, tries = 0; tries < 3;) {                                     \
      double t = omp_get_wtime();                                                          \
      _Pragma("omp parallel num_threads(threads)") {                                       \
        TWL_ZERO;                                                                          \
        for (long k = 0; k < rounds; k++) { STEP; }                                        \
      }                                                                                    \
      t = omp_get_wtime() - t;                                                             \
      double rate = (double)threads * rounds * (OPS) / t * 1e-9;                           \
      if (rate > best) best = rate;                                                        \
      if (t < seconds / 8) rounds *= 4;                                                    \
      else tries++;                                                                        \
    }                                                                                      \
    return best;                                                                           \
  }

#if defined(__x86_64__) && TWL_BYTES >= 32
TWL_PEAK(twl_f32, TWL_STEP("vfmadd231ps"), 12 * 2 * (TWL_BYTES / 4))
#else
static double twl_f32(int threads, double seconds) {
  double best = 0;
  for (int tries = 0; tries < 3; tries++) {
    const long rounds = (long)(seconds * 5e7);
    float total = 0;
    double t = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
      twl_floats a[8], x = twl_floats{} + 0.999f;
      for (int i = 0; i < 8; i++) a[i] = twl_floats{} + (float)i;
      for (long k = 0; k < rounds; k++)
        for (int i = 0; i < 8; i++) a[i] = a[i] * x + x;
      for (int i = 1; i < 8; i++) a[0] += a[i];
      total += a[0][0];
    }
    t = omp_get_wtime() - t;
    volatile float sink = total;
    (void)sink;
    double rate = (double)threads * rounds * 8 * 2 * (TWL_BYTES / 4) / t * 1e-9;
    if (rate > best) best = rate;
  }
  return best;
}
#endif
#if defined(__AVX512BF16__)
TWL_PEAK(twl_bf16, TWL_STEP("vdpbf16ps"), 12 * 2 * (TWL_BYTES / 2))
#endif
#if defined(__AVX512VNNI__)
TWL_PEAK(twl_int8, TWL_STEP("vpdpbusd"), 12 * 2 * TWL_BYTES)
#endif

extern "C" __attribute__((visibility("default"))) double tw_bandwidth(int threads, const char* buffer, size_t bytes, double seconds) {
  return twl_bandwidth(threads, buffer, bytes, seconds);
}

extern "C" __attribute__((visibility("default"))) int tw_limits(int threads, int mib, double seconds, double* out) {
  size_t bytes = (size_t)mib << 20;
  char* buffer = (char*)mmap(0, bytes + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (buffer == MAP_FAILED) return 1;
  madvise(buffer, bytes, MADV_HUGEPAGE);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (size_t i = 0; i < bytes; i += 4096) buffer[i] = 1;
  memset(out, 0, 4 * sizeof *out);
  out[1] = twl_f32(threads, seconds / 5);
#if defined(__AVX512BF16__)
  out[2] = twl_bf16(threads, seconds / 5);
#endif
#if defined(__AVX512VNNI__)
  out[3] = twl_int8(threads, seconds / 5);
#endif
  out[0] = twl_bandwidth(threads, buffer, bytes, seconds / 2);
  munmap(buffer, bytes + 8192);
  return 0;
}
