// One team of threads per step: how many threads the process may use, the barrier between dependent calls, and the sharing
// of one call's work.
#pragma once
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <emmintrin.h>  // not immintrin.h, which takes the compiler longer than all that follows
#endif

static inline void tw_pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

static inline int64_t tw_now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// Threads meet here: spin for some 20 us, offer the processor for 2 ms, then sleep (to be woken costs some 50 us, and the others
// would wait for it at the next barrier). Every thread of the team calls `wait` the same number of times.
struct tw_barrier {
  alignas(64) std::atomic<int32_t> arrived{0};
  alignas(64) std::atomic<int32_t> phase{0};
  alignas(64) std::atomic<int32_t> sleepers{0};

  void wait(int32_t threads) {
    if (threads == 1) return;
    const int32_t now = phase.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived.store(0, std::memory_order_relaxed);
      phase.store(now + 1, std::memory_order_seq_cst);
      if (sleepers.load(std::memory_order_seq_cst)) wake();
      return;
    }
    const int64_t until = tw_now_ns() + 20000;
    do {
      for (int n = 0; n < 64; n++) {
        if (phase.load(std::memory_order_acquire) != now) return;
        tw_pause();
      }
    } while (tw_now_ns() < until);
    do {
      if (phase.load(std::memory_order_acquire) != now) return;
      sched_yield();
    } while (tw_now_ns() < until + 2000000);
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    while (phase.load(std::memory_order_seq_cst) == now) sleep(now);
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
#ifdef __linux__
  void sleep(int32_t now) { syscall(SYS_futex, &phase, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &phase, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(int32_t) { sched_yield(); }
  void wake() {}
#endif
};

constexpr int TW_MAX_THREADS = 1024;

// What is left of one thread's share of one call: parts `first` to `last`. The owner takes from the front, so that it reads memory in
// order; others that are done take from the back. One word: turn (which call of which step), first, last.
struct alignas(64) tw_share {
  std::atomic<uint64_t> word{0};

  // A part, or -1: none is left, or the owner is past this turn.
  int claim(uint32_t turn, int parts, bool owner) {
    uint64_t was = word.load(std::memory_order_relaxed);
    for (;;) {
      uint32_t first = was >> 16 & 0xffff, last = was & 0xffff;
      const int32_t ahead = int32_t(uint32_t(was >> 32) - turn);
      if (ahead > 0) return -1;
      if (ahead < 0) first = 0, last = parts;
      if (first >= last) return -1;
      const int part = owner ? first++ : --last;
      if (word.compare_exchange_weak(was, uint64_t(turn) << 32 | first << 16 | last, std::memory_order_relaxed)) return part;
    }
  }
};

// CPUs' worth of time that the cgroup grants, or `most`.
static inline int tw_quota(int most) {
  double quota = -1, period = 0;
  if (FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (fscanf(f, "%lf %lf", &quota, &period) != 2) quota = -1;
    fclose(f);
  } else {
    FILE *q = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"), *p = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
    if (!q || !p || fscanf(q, "%lf", &quota) != 1 || fscanf(p, "%lf", &period) != 1) quota = -1;
    if (q) fclose(q);
    if (p) fclose(p);
  }
  if (quota <= 0 || period <= 0 || quota / period >= most) return most;
  const int n = int((quota + period - 1) / period);
  return n < 1 ? 1 : n;
}

static inline int tw_default_threads() {
  int n = int(sysconf(_SC_NPROCESSORS_ONLN));
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
  return tw_quota(n < 1 ? 1 : n);
}

// Every thread computes in the same floating-point mode, whatever the caller had set: the same input gives the same bits.
struct tw_float_mode {
#if defined(__x86_64__)
  unsigned saved = _mm_getcsr();
  tw_float_mode() { _mm_setcsr(0x1f80); }
  ~tw_float_mode() { _mm_setcsr(saved); }
#else
  tw_float_mode() {}
  ~tw_float_mode() {}
#endif
};
