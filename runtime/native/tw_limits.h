// What the machine can do at most: read bandwidth and peak rates of the multiply-add forms that the build has.
//
// Exported by the library of each level: `tw_limits(threads, mib, seconds, out[4])`, where out receives GB/s read from memory,
// f32 GFLOP/s, bf16 GFLOP/s, int8 GOP/s (a rate that the level does not have stays 0); and `tw_bandwidth(threads, buffer, bytes,
// seconds)`, the GB/s alone, on the caller's memory: quick enough to be taken between the parts of a measurement.
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>

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

constexpr int TWL_MOST = 1024;

static inline double twl_now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Several threads that do `work(thread)` at once, begun when all are there.
template <class Work>
struct twl_together {
  Work work;
  std::atomic<int> threads, next, there;

  void take_part() {
    const int me = next++;
    for (there++; there < threads;) sched_yield();
    if (me < threads) work(me);
  }

  static void* main(void* p) {
    ((twl_together*)p)->take_part();
    return 0;
  }

  // Seconds it took; infinite if threads are missing.
  double run() {
    pthread_t made[TWL_MOST];
    int n = 0;
    const int want = threads;
    while (n < want - 1 && n < TWL_MOST && !pthread_create(&made[n], 0, main, this)) n++;
    if (n < want - 1) threads = 0;
    const double began = twl_now();
    if (threads) take_part();
    for (int i = 0; i < n; i++) pthread_join(made[i], 0);
    return threads ? twl_now() - began : __builtin_inf();
  }
};

template <class Work>
static double twl_seconds(int threads, Work work) {
  twl_together<Work> t{work, {threads}, {0}, {0}};
  return t.run();
}

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
  double best = 0, start = twl_now();
  const size_t ahead[3] = {0, 1024, 4096}, share = bytes / threads / 4096 * 4096;
  for (int pass = 0; pass < 3 || (twl_now() - start < seconds && pass < 60); pass++) {
    const double t = twl_seconds(threads, [=](int thread) {
      volatile long long sink = twl_read(buffer + share * thread, buffer + share * (thread + 1), ahead[pass % 3]);
      (void)sink;
    });
    if (bytes / t * 1e-9 > best) best = bytes / t * 1e-9;
    if (twl_now() - start > 2 * seconds) break;
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

// `ops` of one round; rounds grow until the time is worth measuring; the best of three is kept.
template <class Rounds>
static double twl_peak(int threads, double seconds, double ops, Rounds work) {
  double best = 0;
  for (long rounds = 20000, tries = 0; tries < 3;) {
    const double t = twl_seconds(threads, [=](int) { work(rounds); });
    const double rate = threads * rounds * ops / t * 1e-9;
    if (rate > best) best = rate;
    if (t < seconds / 8) rounds *= 4;
    else tries++;
  }
  return best;
}

#define TWL_PEAK(NAME, STEP, OPS)                         \
  static double NAME(int threads, double seconds) {       \
    return twl_peak(threads, seconds, OPS, [](long rounds) { \
      TWL_ZERO;                                           \
      for (long k = 0; k < rounds; k++) { STEP; }         \
    });                                                   \
  }

#if defined(__x86_64__) && TWL_BYTES >= 32
TWL_PEAK(twl_f32, TWL_STEP("vfmadd231ps"), 12 * 2 * (TWL_BYTES / 4))
#else
static double twl_f32(int threads, double seconds) {
  return twl_peak(threads, seconds, 8 * 2 * (TWL_BYTES / 4), [](long rounds) {
    twl_floats a[8], x = twl_floats{} + 0.999f;
    for (int i = 0; i < 8; i++) a[i] = twl_floats{} + (float)i;
    for (long k = 0; k < rounds; k++)
      for (int i = 0; i < 8; i++) a[i] = a[i] * x + x;
    for (int i = 1; i < 8; i++) a[0] += a[i];
    volatile float sink = a[0][0];
    (void)sink;
  });
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
  const size_t share = (bytes / threads + 4095) / 4096 * 4096;
  const double touched = twl_seconds(threads, [=](int thread) {
    for (size_t i = share * thread; i < share * (thread + 1) && i < bytes; i += 4096) buffer[i] = 1;
  });
  if (touched == __builtin_inf()) return munmap(buffer, bytes + 8192), 2;
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
