// A team of threads runs a plan's calls. Nobody waits for a thread, only for parts: each call is cut into parts, whoever is
// running takes the next, and a call begins once all parts that it depends on are done.
//
// So a thread that the system does not run holds up nothing, unless it was stopped in the middle of a part. Whoever waits for
// that part then sleeps and gives it the processor; where too much time is lost even so, the team is smaller for a while.
#pragma once
#include <stddef.h>

#include "tw_tables.h"
#include "tw_threads.h"

// How many of the symbols callers give; the others are counted while a plan runs.
#ifndef TW_NGIVEN
#define TW_NGIVEN TW_NSYMBOLS
#endif

// How long a thread waits in a loop before it looks whether those it waits for are running, and how long it watches them.
constexpr int64_t TW_SPIN_NS = 20000, TW_WATCH_NS = 40000;
// How long one waits for a thread that is running before it sleeps, and a member for the next job.
constexpr int64_t TW_PATIENCE_NS = 2000000, TW_IDLE_NS = 300000;
// A team that lost so much more than a part of the time is smaller for so many times what it lost.
constexpr int64_t TW_DEBT_NS = 4000000, TW_REST = 16;
// How long a team that grew is watched before it grows further.
constexpr int64_t TW_TRIAL_NS = 2000000;
// From how many owners a thread takes over parts before it waits; later it asks all.
constexpr int32_t TW_NEAR = 8;
// A call over so many rows is work enough to be cut finely: a share into so many parts at most.
constexpr int64_t TW_MANY_ROWS = 16, TW_MOST_PARTS = 32;

// What is left of one thread's share of one call: parts `first` to `last`. The owner takes from the front, so that it reads memory in
// order; others that are done take from the back. One word: turn (which call of which step), first, last.
struct alignas(64) tw_share {
  std::atomic<uint64_t> word;

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

// What the members of a team run: a plan from one call on, up to `end`. Whole words, so that it can be copied while it may change.
struct tw_job {
  const tw_plan *plan;
  int64_t first, end, threads, turn, due;  // turn of call 0; how many parts were done before
  int64_t symbols[TW_NSYMBOLS + 1], values[TW_MAX_VALUES];
  char *bases[TW_MAX_BASES];
};

static inline void tw_copy_job(tw_job &to, const tw_job &from) {
  for (size_t i = 0; i < sizeof(tw_job) / 8; i++)
    __atomic_store_n((uint64_t *)&to + i, __atomic_load_n((const uint64_t *)&from + i, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
}

struct tw_team;

// One thread of a team. `holds`: it has taken parts that are not yet counted as done.
struct alignas(64) tw_member {
  tw_team *team;
  pthread_t thread;
  clockid_t clock;  // of the time that it ran
  std::atomic<bool> holds;
  std::atomic<uint32_t> asleep;
};

// Memory of zeros is a team of nobody. Member 0 is whoever calls.
struct tw_team {
  alignas(64) std::atomic<uint32_t> done;  // parts, ever
  std::atomic<uint32_t> sleepers;          // threads that sleep until it changes
  alignas(64) std::atomic<uint32_t> epoch;  // odd while the job is written
  std::atomic<int32_t> size;                // members below it take part
  std::atomic<int32_t> processor;           // where the job began
  std::atomic<bool> over, giving;
  std::atomic<int64_t> lost;  // ns that the others waited for one who was not running
  int64_t debt, then, until;  // ns lost beyond what is tolerated, at that time; when the team may grow again
  int32_t threads, started;
  uint32_t turn;  // calls begun, ever
  pid_t pid;
  tw_job job;
  tw_share shares[TW_MAX_THREADS];
  tw_member members[TW_MAX_THREADS];

  bool reached(uint32_t due) const { return int32_t(done.load(std::memory_order_acquire) - due) >= 0; }
  bool takes_part(int32_t me) const { return me < size.load(std::memory_order_relaxed); }

  // Parts that a member finished become visible to all.
  void publish(int32_t me, int32_t parts) {
    if (!parts) return;
    members[me].holds.store(false, std::memory_order_relaxed);
    done.fetch_add(parts, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst)) tw_wake(done);
  }

  // ---------------------------------------------------------------- waiting
  // Whether it was reached while turning in a loop for so long.
  bool spin(uint32_t due, int64_t ns) const {
    const int64_t until = tw_now_ns() + ns;
    do {
      for (int n = 0; n < 64; n++) {
        if (reached(due)) return true;
        tw_pause();
      }
    } while (tw_now_ns() < until);
    return false;
  }

  // Somebody who holds parts and is not running, or -1. Takes as long as it watches.
  int32_t stopped(int32_t me, uint32_t due) const {
    int32_t who = me ? 0 : 1;  // member 0 is always needed
    while (who && who < started && (who == me || !members[who].holds.load(std::memory_order_relaxed))) who++;
    const int64_t ran = who < started ? tw_ns(members[who].clock) : 0;
    if (spin(due, TW_WATCH_NS) || who == started) return -1;
    return tw_ns(members[who].clock) - ran < TW_WATCH_NS / 4 ? who : -1;
  }

  // Until it is reached, or for so long.
  void sleep(uint32_t due, int64_t ns) {
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    for (const int64_t until = tw_now_ns() + ns; !reached(due) && ns > 0; ns = until - tw_now_ns()) {
      const uint32_t now = done.load(std::memory_order_seq_cst);
      if (int32_t(now - due) < 0) tw_sleep(done, now, ns);
    }
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }

  // Until it is reached, or for so long, with this thread's processor given to a member that was stopped elsewhere. Only one does it
  // at a time, since it keeps the member's affinity meanwhile.
  void give_way(uint32_t due, int64_t ns, int32_t who) {
    const bool mine = !giving.exchange(true);
    tw_borrowed there(members[who].thread, mine);
    sleep(due, ns);
    there.give_back();
    if (mine) giving = false;
  }

  // A member that was woken where the caller runs would only stop it. Whether it went elsewhere.
  bool keep_off() const {
    const int here = tw_processor();
    return here == processor.load(std::memory_order_relaxed) && tw_leave(pthread_self(), here);
  }

  // ---------------------------------------------------------------- its size
  // Smaller where time was lost again and again, and larger after a rest. The caller's alone.
  void adapt() {
    const int32_t n = size.load(std::memory_order_relaxed);
    if (n == threads && !lost.load(std::memory_order_relaxed)) return;
    const int64_t now = tw_now_ns();
    if (const int64_t ns = lost.exchange(0)) {
      debt -= (now - then) / TW_REST;
      debt = (debt > 0 ? debt : 0) + ns, then = now;
      if (debt < TW_DEBT_NS) return;
      size.store(n > 1 ? n - 1 : 1, std::memory_order_relaxed);
      until = now + TW_REST * debt, debt = 0;
    } else if (now >= until) {
      size.store(n + 1, std::memory_order_seq_cst);
      until = now + TW_TRIAL_NS;
      call_members();
    }
  }

  void call_members() {
    const int32_t n = size.load(std::memory_order_relaxed);
    for (int32_t i = 1; i < n; i++)
      if (members[i].asleep.load(std::memory_order_seq_cst) && members[i].asleep.exchange(0)) tw_wake(members[i].asleep);
  }
};
