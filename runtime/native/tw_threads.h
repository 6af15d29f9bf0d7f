// What the system grants to threads, and their tools: how many may run, clocks, sleeping on a word, the floating-point mode.
#pragma once
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
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

constexpr int TW_MAX_THREADS = 1024;

static inline void tw_pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

static inline int64_t tw_ns(clockid_t clock) {
  timespec t = {};
  clock_gettime(clock, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

static inline int64_t tw_now_ns() { return tw_ns(CLOCK_MONOTONIC); }

// Sleep while `word` is `value`, until woken or for so long; it may also wake for no reason.
static inline void tw_sleep(std::atomic<uint32_t> &word, uint32_t value, int64_t ns) {
#ifdef __linux__
  const timespec t = {time_t(ns / 1000000000), long(ns % 1000000000)};
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, &t, nullptr, 0);
#else
  (void)word, (void)value, (void)ns;
  sched_yield();
#endif
}

static inline void tw_wake(std::atomic<uint32_t> &word) {
#ifdef __linux__
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

// ---------------------------------------------------------------- which processor
static inline int tw_processor() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves a thread off a processor, if it may run on others. Whether it did.
static inline bool tw_leave(pthread_t thread, int processor) {
#ifdef __linux__
  cpu_set_t all, others;
  if (pthread_getaffinity_np(thread, sizeof all, &all) || !CPU_ISSET(processor, &all) || CPU_COUNT(&all) < 2) return false;
  others = all;
  CPU_CLR(processor, &others);
  const bool left = !pthread_setaffinity_np(thread, sizeof others, &others);
  pthread_setaffinity_np(thread, sizeof all, &all);
  return left;
#else
  (void)thread, (void)processor;
  return false;
#endif
}

// Another thread, moved to this one's processor until it is given back; then it may run where it might before, and leaves.
struct tw_borrowed {
#ifdef __linux__
  pthread_t thread;
  int here;
  cpu_set_t all;
  bool moved;

  tw_borrowed(pthread_t whom, bool wanted) : thread(whom), here(tw_processor()), moved(false) {
    cpu_set_t one;
    CPU_ZERO(&one);
    if (!wanted || here < 0 || here >= CPU_SETSIZE || pthread_getaffinity_np(thread, sizeof all, &all) || CPU_COUNT(&all) < 2) return;
    CPU_SET(here, &one);
    moved = !pthread_setaffinity_np(thread, sizeof one, &one);
  }

  void give_back() {
    if (!moved) return;
    pthread_setaffinity_np(thread, sizeof all, &all);
    tw_leave(thread, here);
  }
#else
  tw_borrowed(pthread_t, bool) {}
  void give_back() {}
#endif
};

// ---------------------------------------------------------------- how many
// CPUs' worth of time that the files of one control group grant (version 2 or 1), or `most`.
static inline double tw_granted(const char *folder, double most) {
  char path[8300];
  double quota = -1, period = 0;
  snprintf(path, sizeof path, "%s/cpu.max", folder);
  FILE *q = fopen(path, "r"), *p = nullptr;
  if (q) {
    if (fscanf(q, "%lf %lf", &quota, &period) != 2) quota = -1;
  } else {
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    q = fopen(path, "r");
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    p = fopen(path, "r");
    if (!q || !p || fscanf(q, "%lf", &quota) != 1 || fscanf(p, "%lf", &period) != 1) quota = -1;
  }
  if (q) fclose(q);
  if (p) fclose(p);
  return quota <= 0 || period <= 0 || quota / period >= most ? most : quota / period;
}

// CPUs' worth of time, rounded up, that the control group and those it lies in grant, or `most`. In a container the root is the group.
static inline int tw_quota(int most, const char *root = "/sys/fs/cgroup", const char *groups = "/proc/self/cgroup") {
  char line[4096], folder[8192];
  double n = most;
  FILE *f = fopen(groups, "r");
  while (f && fgets(line, sizeof line, f)) {  // `0::/group` or `4:cpu,cpuacct:/group`
    line[strcspn(line, "\n")] = 0;
    char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : nullptr;
    if (!group) continue;
    *group++ = *names++ = 0;
    bool cpu = !*names;
    const char *below = cpu ? "" : "/cpu";
    for (char *rest, *name = strtok_r(names, ",", &rest); name; name = strtok_r(nullptr, ",", &rest)) cpu = cpu || !strcmp(name, "cpu");
    for (char *end = cpu ? group + strlen(group) : nullptr; end; end = strrchr(group, '/')) {
      *end = 0;
      snprintf(folder, sizeof folder, "%s%s%s", root, below, group);
      n = tw_granted(folder, n);
    }
  }
  if (f) fclose(f);
  const int up = int(n) < n ? int(n) + 1 : int(n);
  return up < 1 ? 1 : up;
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
