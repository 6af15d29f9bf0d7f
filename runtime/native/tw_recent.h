// Exact rows of the last tokens, beside caches whose rows are encoded. Every range has its own, which no other reads, and gives
// back those that its sequence has left behind.
//
// A query at `pos` reads the rows from tw_recent_first(pos) on. Some more are kept, so that a sequence can be cut back a little.
// Of each range, `lost` is how many rows have been given back and `filled` how many were written. What is lost follows from how
// long a sequence was, not from the steps in which its tokens came. Included by tw_ranges.h.
#pragma once
#include "tw_model.h"

// As `first_recent` of ir/plan/step.py; rows kept beyond those that are read; how many are given back at once.
enum { TW_RECENT_CHUNK = 16, TW_RECENT_SPARE = 32, TW_RECENT_STEP = 32 };

static int32_t tw_recent_first(int32_t pos) {
  const int32_t first = (pos + 1) / TW_RECENT_CHUNK * TW_RECENT_CHUNK - TW_RECENT_ROWS;
  return first > 0 ? first : 0;
}

// Rows that a sequence of `length` tokens no longer needs.
static inline int32_t tw_recent_behind(int32_t length) {
  const int32_t behind = tw_recent_first(length) - TW_RECENT_SPARE;
  return behind > 0 ? behind / TW_RECENT_STEP * TW_RECENT_STEP : 0;
}

// The least length, other than 0, to which a range's sequence can be cut: the next token finds all rows that it reads.
static int32_t tw_recent_least(const tw_session *s, int32_t range) {
  return range < 0 || !s->lost[range] ? 0 : s->lost[range] + TW_RECENT_ROWS - 1;
}

static int tw_recent_refuse(const tw_session *s, int32_t range, int32_t length, const char *what) {
  return tw_fail(TW_ARGUMENT, "%s: a sequence whose recent rows are kept cannot go back to %d tokens, only to %d or more, or to none", what,
                 length, tw_recent_least(s, range));
}

static void tw_release(char *at, int64_t bytes) {
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  const uintptr_t lo = (uintptr_t(at) + page - 1) / page * page, hi = (uintptr_t(at) + bytes) / page * page;
  if (hi > lo) madvise((void *)lo, hi - lo, MADV_DONTNEED);
}

// Rows `first` to `last` (exclusive) of one head, in bytes from the start of the head; `first` is a multiple of the block.
static int64_t tw_recent_at(const tw_stream &t, int32_t row) { return (row + t.block - 1) / t.block * t.block_bytes; }

static char *tw_recent_head(tw_session *s, int32_t stream, int32_t range, int64_t head) {
  return s->streams[stream] + range * tw_streams[stream].slot + head * tw_streams[stream].head_bytes;
}

static void tw_recent_release(tw_session *s, int32_t range, int32_t rows) {
  for (int32_t i = 0; i < TW_NSTREAMS; i++)
    for (int64_t h = 0; tw_streams[i].kind == TW_RECENT && h < tw_streams[i].heads; h++)
      tw_release(tw_recent_head(s, i, range, h), tw_recent_at(tw_streams[i], rows));
}

static void tw_recent_forget(tw_session *s, int32_t range) {
  if (s->filled[range]) tw_recent_release(s, range, s->filled[range]);
  s->lost[range] = s->filled[range] = 0;
}

// Gives a range the rows of another, of a sequence of at most `length` tokens.
static void tw_recent_copy(tw_session *s, int32_t to, int32_t from, int32_t length) {
  const int32_t first = s->lost[from], last = s->filled[from] < length ? s->filled[from] : length;
  s->lost[to] = first, s->filled[to] = last > first ? last : first;
  for (int32_t i = 0; i < TW_NSTREAMS && last > first; i++) {
    const tw_stream &t = tw_streams[i];
    const int64_t at = tw_recent_at(t, first), bytes = tw_recent_at(t, last) - at;
    for (int64_t h = 0; t.kind == TW_RECENT && h < t.heads; h++)
      memcpy(tw_recent_head(s, i, to, h) + at, tw_recent_head(s, i, from, h) + at, size_t(bytes));
  }
}

#if TW_STEP >= 0
// ---------------------------------------------------------------- steps
// Whether the first token of a step's sequence finds the rows that it reads. A sequence that begins anew has lost nothing.
static int tw_recent_begin(tw_session *s, int32_t range, int32_t pos) {
  if (!TW_RECENT_ROWS) return TW_OK;
  if (!pos) s->lost[range] = 0;
  return tw_recent_first(pos) < s->lost[range] ? tw_recent_refuse(s, range, pos, "tw_step") : TW_OK;
}

static void tw_recent_end(tw_session *s, int32_t range, int32_t length) {
  if (!TW_RECENT_ROWS) return;
  const int32_t behind = tw_recent_behind(length);
  s->filled[range] = length;
  if (behind <= s->lost[range]) return;
  s->lost[range] = behind;
  tw_recent_release(s, range, behind);
}
#endif
