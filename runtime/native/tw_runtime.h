// Steps and runs of tilewright.h over the generated tables. Included once, after them.
//
// Checks every argument, then runs a plan's calls on the session's team. Loops here go over calls, tokens and arguments;
// all work on tensors is in the rendered kernels.
#pragma once
#include "tw_ahead.h"
#include "tw_groups.h"
#include "tw_lengths.h"
#include "tw_saved.h"

extern "C" {

// ---------------------------------------------------------------- running a plan
// The symbols that a caller gives, and the least value of those that a plan counts.
static void tw_take_symbols(const int64_t *given, int64_t *symbols) {
  for (int i = 0; i < TW_NSYMBOLS; i++) symbols[i] = i < TW_NGIVEN ? given[i] : tw_ranges[i].lo;
}

// The value that a plan's calls have left for a symbol.
static int tw_count(const tw_counted &c, tw_job &j) {
  int32_t found;
  memcpy(&found, j.bases[c.at.base] + c.at.offset, sizeof found);
  const struct tw_range &r = tw_ranges[c.symbol];
  if (found < r.lo || found > r.hi)
    return tw_fail(TW_ARGUMENT, "%s: %s is %d, expected %lld to %lld", j.plan->name, r.name, found, (long long)r.lo, (long long)r.hi);
  j.symbols[c.symbol] = found;
  j.plan->values(j.symbols, j.values);
  return TW_OK;
}

static int tw_execute(tw_session *s, const tw_plan &p, const int64_t *symbols, const int64_t *values, const void *const *inputs,
                      void *const *outputs) {
  tw_job j = {};
  int n = 0;
  j.plan = &p;
  memcpy(j.symbols, symbols, sizeof(int64_t) * TW_NSYMBOLS);
  memcpy(j.values, values, sizeof j.values);
  j.bases[n++] = s->arena;
  j.bases[n++] = s->model->weights;
  for (int i = 0; i < p.ninputs; i++) j.bases[n++] = (char *)inputs[i];
  for (int i = 0; i < p.noutputs; i++) j.bases[n++] = (char *)outputs[i];
  for (int i = 0; i < TW_NSTREAMS; i++) j.bases[n++] = s->streams[i];
  if (tw_poison()) {
    memset(s->arena, 0xFF, TW_ARENA < (1LL << 27) ? TW_ARENA : (1LL << 27));  // sizes without a bound reserve more than there is
    for (int i = 0; i < p.noutputs; i++) memset(outputs[i], 0xFF, size_t(values[p.outputs[i].bytes]));
  }
  for (int k = 0; k < p.ncounted; k++) {
    j.end = p.counted[k].call;
    tw_run_job(s->team, j);
    const int rc = tw_count(p.counted[k], j);
    if (rc != TW_OK) return rc;
    j.first = j.end;
  }
  j.end = p.ncalls;
  tw_run_job(s->team, j);
  return TW_OK;
}

static int tw_take(tw_session *s) {
  if (tw_unchanged(s->model) != TW_OK) return TW_FILE;
  if (s->busy.exchange(true)) return tw_fail(TW_BUSY, "the session is in use by another thread; give each thread its own session");
  const int rc = tw_muster(s->team);
  if (!rc) return TW_OK;
  s->busy = false;
  return tw_fail(TW_MEMORY, "thread %d of %d cannot be started (%s); use fewer threads", s->team.started + 1, s->team.threads, strerror(rc));
}

static int tw_check_symbols(int32_t graph, const int64_t *symbols) {
  if (graph < 0 || graph >= TW_NPLANS) return tw_fail(TW_ARGUMENT, "graph %d: expected 0 to %d", graph, TW_NPLANS - 1);
  for (int i = 0; i < TW_NGIVEN; i++)
    if (symbols[i] < tw_ranges[i].lo || symbols[i] > tw_ranges[i].hi)
      return tw_fail(TW_ARGUMENT, "%s is %lld, expected %lld to %lld", tw_ranges[i].name, (long long)symbols[i], (long long)tw_ranges[i].lo,
                     (long long)tw_ranges[i].hi);
  return TW_OK;
}

#if TW_STEP >= 0
static int tw_check_step(tw_session *s, int32_t n, const int32_t *ids, const int32_t *pos, const int32_t *seq) {
  for (int32_t i = 0; i < n; i++) {
    if (seq[i] < 0 || seq[i] >= s->sequences)
      return tw_fail(TW_ARGUMENT, "tw_step: seq[%d] is %d, expected 0 to %d", i, seq[i], s->sequences - 1);
    s->last[seq[i]] = -1;
  }
  for (int32_t i = 0; i < n; i++) {
    if (ids[i] < 0 || ids[i] >= TW_VOCAB) return tw_fail(TW_ARGUMENT, "tw_step: ids[%d] is %d, expected 0 to %d", i, ids[i], TW_VOCAB - 1);
    if (pos[i] < 0 || pos[i] >= TW_CONTEXT)
      return tw_fail(TW_ARGUMENT, "tw_step: pos[%d] is %d, expected 0 to %d", i, pos[i], TW_CONTEXT - 1);
    if (pos[i] <= s->last[seq[i]])
      return tw_fail(TW_ARGUMENT, "tw_step: pos[%d] is %d, expected more than %d: positions of a sequence must increase", i, pos[i], s->last[seq[i]]);
    s->last[seq[i]] = pos[i];
  }
  return TW_OK;
}

// Blocks of at most TW_BLOCK consecutive tokens of one sequence: first row, rows, slot, first position.
static int32_t tw_block_table(int32_t n, const int32_t *pos, const int32_t *seq, int32_t *blocks, int32_t *most) {
  int32_t count = 0;
  *most = 1;
  for (int32_t i = 0; i < n; count++) {
    int32_t rows = 1;
    while (i + rows < n && rows < TW_BLOCK && seq[i + rows] == seq[i] && pos[i + rows] == pos[i] + rows) rows++;
    const int32_t block[TW_BLOCK_COLUMNS] = {i, rows, seq[i], pos[i]};
    memcpy(blocks + TW_BLOCK_COLUMNS * count, block, sizeof block);
    *most = rows > *most ? rows : *most;
    i += rows;
  }
  return count;
}

// What the step reads, in memory of our own.
static int32_t *tw_own(tw_session *s, int32_t array) { return s->tokens + array * TW_STRIDE; }

static int tw_take_tokens(tw_session *s, int32_t n, const int32_t *ids, const int32_t *pos, const int32_t *seq) {
  memcpy(tw_own(s, TW_OWN_IDS), ids, sizeof(int32_t) * n);
  memcpy(tw_own(s, TW_OWN_POS), pos, sizeof(int32_t) * n);
  memcpy(tw_own(s, TW_OWN_SEQ), seq, sizeof(int32_t) * n);
  return tw_check_step(s, n, tw_own(s, TW_OWN_IDS), tw_own(s, TW_OWN_POS), tw_own(s, TW_OWN_SEQ));
}

// Runs of observed tokens: each inside the step, of one sequence, at consecutive positions, in ascending order.
static int tw_check_runs(int32_t n, const int32_t *pos, const int32_t *seq, int32_t runs, const int32_t *table) {
  for (int32_t i = 0, last = 0; i < runs; i++) {
    const int32_t *const run = table + TW_BLOCK_COLUMNS * i, first = run[0], rows = run[1];
    bool ok = first >= last && first < n && rows > 0 && rows <= n - first;
    for (int32_t r = 0; ok && r < rows; r++) ok = seq[first + r] == run[2] && pos[first + r] == run[3] + r;
    for (int32_t k = 0; ok && k < i; k++) ok = table[TW_BLOCK_COLUMNS * k + 2] != run[2];
    if (!ok) return tw_fail(TW_ARGUMENT, "tw_observe: run %d (%d, %d, %d, %d) does not fit the step's tokens", i, first, rows, run[2], run[3]);
    last = first + rows;
  }
  return TW_OK;
}

#if TW_SELECTS
// Tokens with a budget: each the only one of its sequence, which reads its last block at least.
static int tw_check_choices(int32_t n, const int32_t *seq, const int32_t *choices) {
  for (int32_t i = 0; i < n; i++) {
    const int32_t *const c = choices + TW_CHOICE_COLUMNS * i;
    bool ok = c[0] == 0 || (c[1] >= 0 && c[2] >= 1 && c[1] <= c[0] - c[2]);
    for (int32_t k = 0; ok && c[0] && k < n; k++) ok = k == i || seq[k] != seq[i];
    if (!ok) return tw_fail(TW_ARGUMENT, "tw_choose: token %d of sequence %d cannot read %d blocks, of which %d first and %d last", i, seq[i], c[0], c[1], c[2]);
  }
  return TW_OK;
}

// Rows that this step writes are not in the summaries of blocks.
static void tw_forget_written(tw_session *s, int32_t n, const int32_t *pos, const int32_t *range) {
  for (int32_t i = 0; i < n; i++)
    for (int32_t k = 0; k < TW_NSTATES && (!i || range[i] != range[i - 1]); k++)
      for (int32_t h = 0; h < tw_states[k].heads; h++) {
        const int32_t *const gone = tw_gone_of(s, tw_states[k], range[i]);
        tw_forget_summaries(s, tw_states[k], range[i], h, pos[i] - (gone ? gone[h] : 0));
      }
}
#endif

// Where each token's sequence appends to: slices that others read are never written. The row of a position is lower by what a
// head has lost.
static int tw_find_ranges(tw_session *s, int32_t n, const int32_t *pos, const int32_t *seq, int32_t *ranges) {
  for (int32_t i = 0; i < n; i++) {
    if (i && seq[i] == seq[i - 1]) {
      ranges[i] = ranges[i - 1];
      continue;
    }
    const int32_t before = s->range_of[seq[i]], slice = before < 0 ? 0 : tw_rows_before(s, before, pos[i]) / TW_SLICE;
    ranges[i] = tw_writable(s, seq[i], slice, slice + 1);
    if (ranges[i] < 0) return tw_fail(TW_MEMORY, "tw_step: no memory for sequence %d", seq[i]);
    const int rc = tw_recent_begin(s, ranges[i], pos[i]);
    if (rc != TW_OK) return rc;
  }
  return TW_OK;
}

// A step over tokens that were taken and checked.
static int tw_step_own(tw_session *s, int32_t n, int32_t nrows, float *logits) {
  int32_t *const ids = tw_own(s, TW_OWN_IDS), *const pos = tw_own(s, TW_OWN_POS), *const seq = tw_own(s, TW_OWN_SEQ), *const length = tw_own(s, TW_OWN_LENGTH);
  int32_t most;
  const int32_t runs = s->runs;
  s->runs = 0;
  if (tw_check_runs(n, pos, seq, runs, tw_own(s, TW_OWN_RUNS)) != TW_OK) return TW_ARGUMENT;
  int32_t *const range = tw_own(s, TW_OWN_RANGE);
  const int found = tw_find_ranges(s, n, pos, seq, range);
  if (found != TW_OK) return found;
  for (int32_t i = 0; i < runs; i++) tw_own(s, TW_OWN_RUNS)[TW_BLOCK_COLUMNS * i + 2] = range[tw_own(s, TW_OWN_RUNS)[TW_BLOCK_COLUMNS * i]];
  const int32_t nblocks = tw_block_table(n, pos, range, tw_own(s, TW_OWN_BLOCKS), &most);
#if TW_FOLLOWS
  tw_fill_lengths(s, n, seq, length);
#endif
  int32_t *const choices = tw_own(s, s->chooses ? TW_OWN_CHOICES : TW_OWN_NONE);
#if TW_SELECTS
  if (!s->chooses) memset(choices, 0, sizeof(int32_t) * TW_CHOICE_COLUMNS * n);
  if (tw_check_choices(n, seq, choices) != TW_OK) return TW_ARGUMENT;
  tw_forget_written(s, n, pos, range);
#endif
  int32_t *const groups = tw_own(s, TW_OWN_GROUPS);
  const int32_t ngroups = TW_SHARES && most == 1 ? tw_find_groups(s, n, pos, range, groups) : 0;
  int64_t symbols[TW_NSYMBOLS + 1] = {0}, values[TW_MAX_VALUES] = {0};
  tw_bind_step(symbols, n, nrows, nblocks, most, s->ranges, runs, ngroups);
  if (tw_check_symbols(TW_STEP, symbols) != TW_OK) return TW_ARGUMENT;
  tw_plans[TW_STEP].values(symbols, values);
  const void *inputs[TW_MAX_BASES];
  tw_order_step(inputs, ids, pos, range, tw_own(s, TW_OWN_BLOCKS), tw_own(s, TW_OWN_ROWS), length, tw_own(s, TW_OWN_RUNS), groups, choices);
  void *outputs[1] = {logits};
  const int done = tw_execute(s, tw_plans[TW_STEP], symbols, values, inputs, outputs);
  if (done != TW_OK) return done;
  tw_forget_groups(s, ngroups, range, groups);
  for (int32_t i = 0; i < n; i++)
    if (i + 1 == n || seq[i + 1] != seq[i]) tw_recent_end(s, range[i], pos[i] + 1);
#if TW_FOLLOWS
  tw_remember(s, n, ids, pos, seq);
#endif
  return TW_OK;
}

#if TW_FOLLOWS
// The first `count` tokens of a sequence once more, as part of a sequence of this length.
static int tw_read_again(tw_session *s, int32_t sequence, int32_t count, int32_t length) {
  const int32_t *const held = s->history + int64_t(sequence) * TW_CONTEXT, expected = s->expected[sequence];
  int rc = TW_OK;
  for (int32_t at = 0; at < count && rc == TW_OK; at += TW_MAX_TOKENS) {
    const int32_t n = count - at < TW_MAX_TOKENS ? count - at : TW_MAX_TOKENS;
    s->expected[sequence] = length;
    memcpy(tw_own(s, TW_OWN_IDS), held + at, sizeof(int32_t) * n);
    for (int32_t i = 0; i < n; i++) tw_own(s, TW_OWN_POS)[i] = at + i, tw_own(s, TW_OWN_SEQ)[i] = sequence;
    rc = tw_check_step(s, n, tw_own(s, TW_OWN_IDS), tw_own(s, TW_OWN_POS), tw_own(s, TW_OWN_SEQ));
    if (rc == TW_OK) rc = tw_step_own(s, n, 0, nullptr);
  }
  s->expected[sequence] = expected;
  return rc;
}

static int tw_read_all_again(tw_session *s) {
  const bool chooses = s->chooses;
  int rc = TW_OK;
  s->chooses = false;
  for (int32_t q = 0; q < s->sequences; q++) {
    if (s->again[q] && rc == TW_OK) rc = tw_read_again(s, q, s->first[q], s->again[q]);
    s->again[q] = 0;
  }
  s->chooses = chooses;
  return rc;
}
#endif

static int tw_step_taken(tw_session *s, int32_t n, const int32_t *ids, const int32_t *pos, const int32_t *seq, int32_t nrows,
                         const int32_t *rows, float *logits) {
  int rc = tw_take_tokens(s, n, ids, pos, seq);
  if (nrows) memcpy(tw_own(s, TW_OWN_ROWS), rows, sizeof(int32_t) * nrows);
  for (int32_t i = 0; rc == TW_OK && i < nrows; i++)
    if (tw_own(s, TW_OWN_ROWS)[i] < 0 || tw_own(s, TW_OWN_ROWS)[i] >= n)
      return tw_fail(TW_ARGUMENT, "tw_step: rows[%d] is %d, expected 0 to %d", i, tw_own(s, TW_OWN_ROWS)[i], n - 1);
#if TW_FOLLOWS
  if (rc == TW_OK && tw_mark(s, n, tw_own(s, TW_OWN_POS), tw_own(s, TW_OWN_SEQ))) {
    rc = tw_read_all_again(s);
    if (rc == TW_OK) rc = tw_take_tokens(s, n, ids, pos, seq);
  }
#endif
  return rc == TW_OK ? tw_step_own(s, n, nrows, logits) : rc;
}
#endif

int tw_step(tw_session *s, int32_t n, const int32_t *ids, const int32_t *pos, const int32_t *seq, int32_t nrows, const int32_t *rows,
            float *logits) {
#if TW_STEP >= 0
  if (!s || !ids || !pos || !seq || (nrows > 0 && (!rows || !logits))) return tw_fail(TW_ARGUMENT, "tw_step: an argument is NULL");
  if (n < 1 || n > TW_MAX_TOKENS) return tw_fail(TW_ARGUMENT, "tw_step: expected 1 to %d tokens, got %d; split the step", TW_MAX_TOKENS, n);
  if (nrows < 0 || nrows > TW_MAX_ROWS) return tw_fail(TW_ARGUMENT, "tw_step: expected 0 to %d rows, got %d", TW_MAX_ROWS, nrows);
  int rc = tw_take(s);
  if (rc != TW_OK) return rc;
  rc = tw_step_taken(s, n, ids, pos, seq, nrows, rows, logits);
  s->busy = s->chooses = false;
  return rc;
#else
  (void)s, (void)n, (void)ids, (void)pos, (void)seq, (void)nrows, (void)rows, (void)logits;
  return tw_fail(TW_ARGUMENT, "tw_step: this model has no step function; use tw_run");
#endif
}

// ---------------------------------------------------------------- fork and drop
int tw_fork(tw_session *s, int32_t from, int32_t to, int32_t length) {
  int rc = tw_check_slot(s, from, "tw_fork");
  if (rc == TW_OK) rc = tw_check_slot(s, to, "tw_fork");
  if (rc == TW_OK && (from == to || length < 0 || length > TW_CONTEXT))
    rc = tw_fail(TW_ARGUMENT, "tw_fork: expected two sequences and a length of 0 to %d, got %d, %d, %d", TW_CONTEXT, from, to, length);
  if (rc == TW_OK) rc = tw_take(s);
  if (rc != TW_OK) return rc;
  rc = tw_fork_rows(s, from, to, length);
  if (s->history) memmove(s->history + int64_t(to) * TW_CONTEXT, s->history + int64_t(from) * TW_CONTEXT, sizeof(int32_t) * length);
  s->phase[to] = s->phase[from], s->expected[to] = 0;
  s->busy = false;
  return rc;
}

int tw_expect(tw_session *s, int32_t slot, int32_t length) {
  int rc = tw_check_slot(s, slot, "tw_expect");
  if (rc == TW_OK && (length < 0 || length > TW_CONTEXT))
    rc = tw_fail(TW_ARGUMENT, "tw_expect: expected a length of 0 to %d, got %d", TW_CONTEXT, length);
  if (rc == TW_OK) rc = tw_take(s);
  if (rc != TW_OK) return rc;
  s->expected[slot] = length;
  s->busy = false;
  return TW_OK;
}

int tw_drop(tw_session *s, int32_t slot) {
  int rc = tw_check_slot(s, slot, "tw_drop");
  if (rc == TW_OK) rc = tw_take(s);
  if (rc != TW_OK) return rc;
  tw_leave_range(s, slot);
  if (s->history) tw_release((char *)(s->history + int64_t(slot) * TW_CONTEXT), int64_t(sizeof(int32_t)) * TW_CONTEXT);
  s->expected[slot] = 0;
  s->busy = false;
  return TW_OK;
}

// ---------------------------------------------------------------- rows of caches
int tw_cache(int32_t state, tw_cache_description *into) {
  if (!into || state < 0 || state >= TW_NSTATES) return tw_fail(TW_ARGUMENT, "tw_cache: cache %d, expected 0 to %d", state, TW_NSTATES - 1);
  const tw_state &c = tw_states[state];
  *into = {c.name, c.key_type, c.value_type, c.select, c.heads, c.context, c.gone >= 0, c.score >= 0, tw_row_bytes(tw_streams[c.first]), tw_row_bytes(tw_streams[c.first + 1])};
  return TW_OK;
}

static int tw_rows(tw_session *s, int32_t state, int32_t what, int32_t sequence, int32_t head, int32_t first, int32_t rows, char *data,
                   int64_t bytes, bool write) {
  const char *const name = write ? "tw_write_rows" : "tw_read_rows";
  int rc = tw_check_cache(s, state, sequence, head, name);
  if (rc != TW_OK) return rc;
  const int stream = tw_stream_of(tw_states[state], what);
  if (stream < 0) return tw_fail(TW_ARGUMENT, "%s: cache %s keeps no tensor %d", name, tw_states[state].name, what);
  const tw_stream &t = tw_streams[stream];
  const int64_t each = tw_row_bytes(t);
  if (!data || first < 0 || rows < 0 || rows > tw_states[state].context - first || bytes != each * rows)
    return tw_fail(TW_ARGUMENT, "%s: rows %d to %d of %d in %lld bytes, expected %lld bytes each", name, first, first + rows,
                   tw_states[state].context, (long long)bytes, (long long)each);
  rc = tw_take(s);
  if (rc != TW_OK) return rc;
  const bool shared = t.kind != TW_SCORES;
  const int32_t range = write && shared ? tw_writable(s, sequence, first / TW_SLICE, TW_SLICES) : tw_range(s, sequence);
  for (int32_t r = 0; r < rows && range >= 0; r++)
    tw_row_packed(t, tw_row_slot(s, stream, range, first + r), head, first + r, data + r * each, write);
  if (write && range >= 0) tw_forget_summaries(s, tw_states[state], range, head, first);
  s->busy = false;
  return range < 0 ? tw_fail(TW_MEMORY, "%s: no memory for sequence %d", name, sequence) : TW_OK;
}

int tw_read_rows(tw_session *s, int32_t state, int32_t what, int32_t sequence, int32_t head, int32_t first, int32_t rows, void *out,
                 int64_t bytes) {
  return tw_rows(s, state, what, sequence, head, first, rows, (char *)out, bytes, false);
}

int tw_write_rows(tw_session *s, int32_t state, int32_t what, int32_t sequence, int32_t head, int32_t first, int32_t rows,
                  const void *from, int64_t bytes) {
  return tw_rows(s, state, what, sequence, head, first, rows, (char *)from, bytes, true);
}

int tw_gone(tw_session *s, int32_t state, int32_t sequence, int32_t head, int32_t *gone) {
  const int rc = tw_check_cache(s, state, sequence, head, "tw_gone");
  if (rc != TW_OK) return rc;
  if (!gone) return tw_fail(TW_ARGUMENT, "tw_gone: gone is NULL");
  const int32_t *const held = s->range_of[sequence] < 0 ? nullptr : tw_gone_of(s, tw_states[state], s->range_of[sequence]);
  *gone = held ? held[head] : 0;
  return TW_OK;
}

int tw_keep(tw_session *s, int32_t state, int32_t sequence, int32_t head, int32_t length, int32_t count, const int32_t *rows) {
  int rc = tw_check_cache(s, state, sequence, head, "tw_keep");
  if (rc != TW_OK) return rc;
  const tw_state &c = tw_states[state];
  if (c.gone < 0) return tw_fail(TW_ARGUMENT, "tw_keep: cache %s does not lose rows; compile with a cache policy", c.name);
  rc = tw_take(s);
  if (rc != TW_OK) return rc;
  const int32_t range = tw_writable(s, sequence, 0, (length + TW_SLICE - 1) / TW_SLICE);
  if (range < 0) rc = tw_fail(TW_MEMORY, "tw_keep: no memory for sequence %d", sequence);
  int32_t *const gone = rc == TW_OK ? tw_gone_of(s, c, range) : nullptr;
  if (rc == TW_OK) rc = tw_check_rows(c, gone[head], length, count, rows);
  if (rc != TW_OK) {
    s->busy = false;
    return rc;
  }
  for (int32_t i = c.first; i < c.first + c.count; i++)
    for (int32_t r = 0; r < count && tw_streams[i].nparts; r++)
      if (rows[r] != r) tw_move_row(tw_streams[i], tw_slot(s, i, range), head, r, rows[r]);
  gone[head] = length - count;
  tw_forget_summaries(s, c, range, head, 0);
  tw_release_rows(s, c, range, head, count);
  s->busy = false;
  return TW_OK;
}

int tw_truncate(tw_session *s, int32_t sequence, int32_t from, int32_t to) {
  int rc = tw_check_slot(s, sequence, "tw_truncate");
  if (rc == TW_OK && (to < 0 || to > from || from > TW_CONTEXT))
    rc = tw_fail(TW_ARGUMENT, "tw_truncate: expected 0 <= to <= from <= %d, got %d, %d", TW_CONTEXT, to, from);
  if (rc == TW_OK) rc = tw_take(s);
  if (rc != TW_OK) return rc;
  for (int32_t i = 0; i < TW_NSTATES; i++) {
    const tw_state &c = tw_states[i];
    const int32_t range = s->range_of[sequence];
    int32_t *const gone = range < 0 ? nullptr : tw_gone_of(s, c, range);
    for (int32_t h = 0; gone && h < c.heads; h++) {
      int32_t rows = from - gone[h];
      for (; rows > 0; rows--) {
        const int32_t *const pos = (const int32_t *)tw_row_slot(s, c.pos, range, rows - 1) + int64_t(h) * c.context;
        if (pos[rows - 1] < to) break;
      }
      gone[h] = to - rows;
    }
  }
  s->busy = false;
  return TW_OK;
}

int tw_observe(tw_session *s, int32_t runs, const int32_t *table) {
#if TW_STEP >= 0
  if (!s || runs < 0 || runs > TW_MAX_TOKENS || (runs && !table))
    return tw_fail(TW_ARGUMENT, "tw_observe: expected 0 to %d runs", TW_MAX_TOKENS);
  if (runs && !TW_OBSERVES) return tw_fail(TW_ARGUMENT, "tw_observe: the model does not observe attention; compile with a cache policy that does");
  const int rc = tw_take(s);
  if (rc != TW_OK) return rc;
  if (runs) memcpy(tw_own(s, TW_OWN_RUNS), table, sizeof(int32_t) * TW_BLOCK_COLUMNS * runs);
  s->runs = runs;
  s->busy = false;
  return TW_OK;
#else
  (void)s, (void)runs, (void)table;
  return tw_fail(TW_ARGUMENT, "tw_observe: this model has no step function");
#endif
}

int tw_choose(tw_session *s, int32_t row, int32_t budget, int32_t first, int32_t last) {
#if TW_STEP >= 0
  if (!s || row < 0 || row >= TW_MAX_TOKENS || budget < 0)
    return tw_fail(TW_ARGUMENT, "tw_choose: expected a token of 0 to %d and a budget of 0 or more, got %d and %d", TW_MAX_TOKENS - 1, row, budget);
  if (budget && !TW_SELECTS) return tw_fail(TW_ARGUMENT, "tw_choose: the model selects no blocks; compile with a cache policy that does");
  const int rc = tw_take(s);
  if (rc != TW_OK) return rc;
  int32_t *const choices = tw_own(s, TW_OWN_CHOICES), choice[TW_CHOICE_COLUMNS] = {budget, first, last};
  if (!s->chooses) memset(choices, 0, sizeof(int32_t) * TW_CHOICE_COLUMNS * TW_STRIDE);
  s->chooses = true;
  memcpy(choices + TW_CHOICE_COLUMNS * row, choice, sizeof choice);
  s->busy = false;
  return TW_OK;
#else
  (void)s, (void)row, (void)budget, (void)first, (void)last;
  return tw_fail(TW_ARGUMENT, "tw_choose: this model has no step function");
#endif
}

int32_t tw_least(const tw_session *s, int32_t sequence) {
  return s && sequence >= 0 && sequence < s->sequences ? tw_recent_least(s, s->range_of[sequence]) : 0;
}

int32_t tw_together(const tw_session *s) { return s ? s->together : 0; }

// ---------------------------------------------------------------- saved sequences
static int tw_check_saved(tw_session *s, int32_t sequence, int32_t length, const char *what) {
  int rc = tw_check_slot(s, sequence, what);
  if (rc == TW_OK && (length < 0 || length > TW_CONTEXT))
    rc = tw_fail(TW_ARGUMENT, "%s: expected a length of 0 to %d, got %d", what, TW_CONTEXT, length);
  return rc == TW_OK ? tw_take(s) : rc;
}

int tw_save(tw_session *s, int32_t sequence, int32_t length, void *out, int64_t *bytes) {
  int rc = tw_check_saved(s, sequence, length, "tw_save");
  if (rc != TW_OK) return rc;
  const int32_t range = bytes ? tw_range(s, sequence) : -1;
  const int64_t need = range < 0 ? 0 : tw_pass_all(s, range, length, TW_COUNT, nullptr, 0);
  if (range < 0 || need < 0) rc = tw_fail(TW_ARGUMENT, "tw_save: sequence %d has no %d tokens", sequence, length);
  else if (out && *bytes < need) rc = tw_fail(TW_ARGUMENT, "tw_save: expected room for %lld bytes, got %lld", (long long)need, (long long)*bytes);
  else if (out) tw_pass_all(s, range, length, TW_SAVE, (char *)out, need);
  if (rc == TW_OK) *bytes = need;
  s->busy = false;
  return rc;
}

int tw_restore(tw_session *s, int32_t sequence, int32_t length, const int32_t *ids, const void *from, int64_t bytes) {
  int rc = tw_check_saved(s, sequence, length, "tw_restore");
  if (rc != TW_OK) return rc;
  tw_leave_range(s, sequence);
  const int32_t range = tw_range(s, sequence);
  if (range < 0) rc = tw_fail(TW_MEMORY, "tw_restore: no memory for sequence %d", sequence);
  else if (!ids || !from || tw_pass_all(s, range, length, TW_RESTORE, (char *)from, bytes) < 0)
    rc = tw_fail(TW_ARGUMENT, "tw_restore: %lld bytes do not hold a sequence of %d tokens of this model", (long long)bytes, length);
  for (int32_t i = 0; rc == TW_OK && i < length; i++)
    if (ids[i] < 0 || ids[i] >= TW_VOCAB) rc = tw_fail(TW_ARGUMENT, "tw_restore: ids[%d] is %d, expected 0 to %d", i, ids[i], TW_VOCAB - 1);
  if (rc != TW_OK) tw_leave_range(s, sequence);
  else if (s->history) memcpy(s->history + int64_t(sequence) * TW_CONTEXT, ids, sizeof(int32_t) * length);
#if TW_STEP >= 0 && TW_FOLLOWS
  s->phase[sequence] = tw_phase(length);
#endif
  s->expected[sequence] = 0;
  s->busy = false;
  return rc;
}

// ---------------------------------------------------------------- graphs without state
int32_t tw_graph(const char *name) {
  for (int i = 0; name && i < TW_NPLANS; i++)
    if (!strcmp(tw_plans[i].name, name)) return i;
  return -1;
}

const char *tw_symbol(int32_t n, int64_t *lo, int64_t *hi) {
  if (n < 0 || n >= TW_NGIVEN) return nullptr;
  if (lo) *lo = tw_ranges[n].lo;
  if (hi) *hi = tw_ranges[n].hi;
  return tw_ranges[n].name;
}

const char *tw_tensor(int32_t graph, int32_t output, int32_t index, const int64_t *symbols, const char **dtype, int32_t *rank,
                      int64_t dims[8]) {
  if (!symbols || tw_check_symbols(graph, symbols) != TW_OK) return nullptr;
  const tw_plan &p = tw_plans[graph];
  if (index < 0 || index >= (output ? p.noutputs : p.ninputs)) return nullptr;
  const tw_io &io = (output ? p.outputs : p.inputs)[index];
  int64_t all[TW_NSYMBOLS + 1], values[TW_MAX_VALUES] = {0};
  tw_take_symbols(symbols, all);
  p.values(all, values);
  if (dtype) *dtype = io.dtype;
  if (rank) *rank = io.rank;
  for (int i = 0; dims && i < io.rank; i++) dims[i] = values[io.dims[i]];
  return io.name;
}

static int tw_check_bytes(const char *what, const tw_io *io, int32_t n, const int64_t *values, const void *const *data, const int64_t *bytes) {
  for (int i = 0; i < n; i++)
    if (!data[i] || bytes[i] != values[io[i].bytes])
      return tw_fail(TW_ARGUMENT, "%s %s: expected %lld bytes, got %lld", what, io[i].name, (long long)values[io[i].bytes],
                     (long long)(data[i] ? bytes[i] : -1));
  return TW_OK;
}

int tw_run(tw_session *s, int32_t graph, const int64_t *symbols, const void *const *inputs, const int64_t *input_bytes,
           void *const *outputs, const int64_t *output_bytes) {
  if (!s || !symbols || !inputs || !outputs || !input_bytes || !output_bytes) return tw_fail(TW_ARGUMENT, "tw_run: an argument is NULL");
  int rc = tw_check_symbols(graph, symbols);
  if (rc != TW_OK) return rc;
  const tw_plan &p = tw_plans[graph];
  if (p.stateful) return tw_fail(TW_ARGUMENT, "tw_run: graph %s keeps state; use tw_step", p.name);
  int64_t all[TW_NSYMBOLS + 1], values[TW_MAX_VALUES] = {0};
  tw_take_symbols(symbols, all);
  p.values(all, values);
  rc = tw_check_bytes("input", p.inputs, p.ninputs, values, inputs, input_bytes);
  if (rc == TW_OK) rc = tw_check_bytes("output", p.outputs, p.noutputs, values, (const void *const *)outputs, output_bytes);
  if (rc == TW_OK) rc = tw_take(s);
  if (rc != TW_OK) return rc;
  rc = tw_execute(s, p, all, values, inputs, outputs);
  s->busy = false;
  return rc;
}

}  // extern "C"
