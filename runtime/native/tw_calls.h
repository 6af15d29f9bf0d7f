// How a plan's calls are run: by one thread alone, or by the members of a team, each on its own way through the same job.
#pragma once
#include <signal.h>
#include <stdlib.h>

#include "tw_team.h"

static bool tw_holds(const tw_condition &c, const int64_t *symbols) {
  const int64_t x = symbols[c.symbol];
  return c.op == 0 ? x <= c.value : c.op == 1 ? x < c.value : c.op == 2 ? x >= c.value : c.op == 3 ? x > c.value : x == c.value;
}

static bool tw_runs(const tw_job &j, const tw_call &c) {
  for (int k = 0; k < c.nconditions; k++)
    if (!tw_holds(tw_conditions[c.conditions + k], j.symbols)) return false;
  return true;
}

// What a kernel is called with.
struct tw_operands {
  void *pointers[TW_MAX_REFS];
  int64_t dims[TW_MAX_DIMS];

  tw_operands(const tw_job &j, const tw_call &c) {
    for (int k = 0; k < c.nrefs; k++) pointers[k] = j.bases[tw_refs[c.refs + k].base] + tw_refs[c.refs + k].offset;
    for (int k = 0; k < c.ndims; k++) dims[k] = j.values[tw_dims[c.dims + k]];
  }
};

static int32_t tw_whole(const tw_job &j, const tw_call &c) {
  const tw_operands o(j, c);
  c.kernel(o.pointers, o.dims, 0, 1);
  return 1;
}

// One thread runs all calls from `first` on, whole; it ends early where the team may grow. The call that is next.
static int64_t tw_alone(tw_team &t, const tw_job &j) {
  int64_t i = j.first;
  for (; i < j.end; i++) {
    const tw_call &c = j.plan->calls[i];
    if (c.wait) t.adapt();
    if (t.takes_part(1)) break;
    if (tw_runs(j, c)) tw_whole(j, c);
  }
  return i;
}

// Into how many parts each share of a call is cut: no more than there are blocks in its grid. 0: one block, which is member 0's.
static int32_t tw_parts(const tw_job &j, const tw_call &c) {
  const int64_t blocks = j.values[c.blocks];
  if (blocks <= 1) return 0;
  int64_t parts = c.parts;
  for (int k = 0; k < c.ndims; k++)
    if (j.values[tw_dims[c.dims + k]] >= TW_MANY_ROWS) parts = blocks;
  const int64_t each = ((parts < blocks ? parts : blocks) + j.threads - 1) / j.threads;
  return int32_t(each < TW_MOST_PARTS ? each : TW_MOST_PARTS);
}

// Takes parts of one call, its own share first, then those of the next owners. Kernels split their grid evenly by (thread, threads):
// a share is split further by asking for more threads. How many parts it did.
static int32_t tw_take_parts(tw_team &t, const tw_job &j, int64_t i, int32_t parts, int32_t me, int32_t owners) {
  const tw_call &c = j.plan->calls[i];
  const int32_t n = int32_t(j.threads);
  const tw_operands o(j, c);
  int32_t mine = 0;
  for (int32_t k = 0; k < owners; k++) {
    const int32_t owner = (me + k) % n;
    for (int part; t.takes_part(me) && (part = t.shares[owner].claim(uint32_t(j.turn + i), parts, k == 0)) >= 0; mine++) {
      t.members[me].holds.store(true, std::memory_order_relaxed);
      c.kernel(o.pointers, o.dims, int64_t(owner) * parts + part, int64_t(n) * parts);
    }
  }
  return mine;
}

// Waits until all parts before `due`, those of calls `from` to `to` among them, are done; takes what others have not begun.
static void tw_await(tw_team &t, const tw_job &j, int64_t from, int64_t to, uint32_t due, int32_t me) {
  if (t.reached(due)) return;
  const int64_t since = tw_now_ns();
  bool lost = false;
  while (!t.spin(due, TW_SPIN_NS) && t.takes_part(me)) {
    int32_t mine = 0;
    for (int64_t i = from; i < to; i++) {
      const tw_call &c = j.plan->calls[i];
      if (const int32_t parts = tw_runs(j, c) ? tw_parts(j, c) : 0) mine += tw_take_parts(t, j, i, parts, me, int32_t(j.threads));
    }
    t.publish(me, mine);
    const int32_t who = t.stopped(me, due);
    if (who > 0) t.give_way(due, TW_PATIENCE_NS, who);
    else if (who == 0 ? lost || !t.keep_off() : tw_now_ns() - since > TW_PATIENCE_NS) t.sleep(due, TW_PATIENCE_NS);
    lost = lost || who >= 0;
  }
  if (lost && me <= 1) t.lost.fetch_add(tw_now_ns() - since, std::memory_order_relaxed);
}

// A member's way through a job. Calls of one block are member 0's: it runs on from one to the next without a word, and the others
// pass them by. False: it was sent away before the end.
static bool tw_walk(tw_team &t, const tw_job &j, int32_t me) {
  uint32_t due = uint32_t(j.due);  // parts of the calls so far
  int64_t from = j.first, i = j.first;
  const int32_t near = j.threads < TW_NEAR ? int32_t(j.threads) : TW_NEAR;
  int32_t mine = 0;  // parts done and not yet published
  bool wait = false, silent = false;
  for (; i < j.end && t.takes_part(me); i++) {
    const tw_call &c = j.plan->calls[i];
    wait = wait || c.wait;
    if (!tw_runs(j, c)) continue;
    const int32_t parts = tw_parts(j, c);
    if (!parts && me) {
      due++;
      continue;
    }
    if (!parts && t.reached(due - mine)) silent = silent || wait, wait = false;
    if (wait || (parts && silent)) {
      t.publish(me, mine);
      mine = 0, silent = false;
    }
    if (wait) {
      tw_await(t, j, from, i, due, me);
      if (me == 0) t.adapt();
      wait = false, from = i;
    }
    if (parts) mine += tw_take_parts(t, j, i, parts, me, near), due += uint32_t(parts * j.threads);
    else mine += tw_whole(j, c), due++;
  }
  t.publish(me, mine);
  if (me == 0) tw_await(t, j, from, i, due, me);
  return i == j.end;
}

// ---------------------------------------------------------------- members
// Turns in a loop for a while after each job, then sleeps. False: the team is over.
static bool tw_next_job(tw_team &t, int32_t me, uint32_t seen, uint32_t &epoch) {
  tw_member &m = t.members[me];
  for (int64_t since = tw_now_ns(), waited = 0; !t.over; waited = tw_now_ns() - since) {
    for (int n = 0; n < 64; n++) {
      epoch = t.epoch.load(std::memory_order_seq_cst);
      if (epoch != seen && !(epoch & 1) && t.takes_part(me)) return true;
      tw_pause();
    }
    if (t.takes_part(me) && waited < TW_IDLE_NS) continue;  // not yielding: that would give up the rest of its time
    m.asleep.store(1, std::memory_order_seq_cst);
    const bool idle = !t.over.load() && (t.epoch.load() == seen || !(me < t.size.load()));
    if (idle) tw_sleep(m.asleep, 1, INT64_MAX);
    m.asleep.store(0, std::memory_order_seq_cst);
    since = tw_now_ns();
  }
  return false;
}

static void *tw_member_main(void *p) {
  tw_member &m = *(tw_member *)p;
  tw_team &t = *m.team;
  const int32_t me = int32_t(&m - t.members);
  tw_float_mode mode;
  tw_job job;
  for (uint32_t seen = 0, epoch; tw_next_job(t, me, seen, epoch);) {
    tw_copy_job(job, t.job);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (t.epoch.load(std::memory_order_relaxed) != epoch) continue;
    t.keep_off();
    seen = tw_walk(t, job, me) ? epoch : epoch - 1;
  }
  return nullptr;
}

// A thread for each member; 0, or the system's error. After a fork the child has none of its parent's.
static int tw_muster(tw_team &t) {
  if (t.pid != getpid()) {
    for (int32_t i = 0; i < t.started; i++) t.members[i].holds = false, t.members[i].asleep = 0;
    t.pid = getpid(), t.started = 1, t.sleepers = 0;
  }
  if (t.started >= t.threads) return 0;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
  int rc = 0;
  for (; t.started < t.threads && !rc; t.started += !rc) {
    tw_member &m = t.members[t.started];
    m.team = &t;
    rc = pthread_create(&m.thread, nullptr, tw_member_main, &m);
    if (!rc) pthread_getcpuclockid(m.thread, &m.clock);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return rc;
}

static void tw_dismiss(tw_team &t) {
  t.over = true;
  if (t.pid != getpid()) return;
  for (int32_t i = 1; i < t.started; i++) {
    t.members[i].asleep = 0;
    tw_wake(t.members[i].asleep);
    pthread_join(t.members[i].thread, nullptr);
  }
}

// ---------------------------------------------------------------- a job
static void tw_together(tw_team &t, tw_job &j) {
  j.threads = t.size.load(std::memory_order_relaxed);
  j.due = t.done.load(std::memory_order_relaxed);
  t.processor.store(tw_processor(), std::memory_order_relaxed);
  pthread_getcpuclockid(pthread_self(), &t.members[0].clock);
  t.epoch.fetch_add(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  tw_copy_job(t.job, j);
  t.epoch.fetch_add(1, std::memory_order_seq_cst);
  t.call_members();
  tw_walk(t, j, 0);
}

static void tw_run_job(tw_team &t, tw_job &j) {
  tw_float_mode mode;
  j.turn = t.turn += uint32_t(j.plan->ncalls);  // never 0, which is the turn of shares not yet used
  t.adapt();
  if (!t.takes_part(1)) j.first = tw_alone(t, j);
  if (j.first < j.end) tw_together(t, j);
}
