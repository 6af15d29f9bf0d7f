// The rows of a sequence as one piece of memory: what a session's files hold. Read back, everything that later accesses rely on
// is checked: how many rows each head has lost, and that positions ascend.
//
// Included by tw_runtime.h.
#pragma once
#include "tw_cache.h"

enum tw_direction { TW_COUNT, TW_SAVE, TW_RESTORE };

static int64_t tw_pass(tw_direction way, char *memory, char *data, int64_t bytes) {
  if (way == TW_SAVE) memcpy(data, memory, size_t(bytes));
  if (way == TW_RESTORE) memcpy(memory, data, size_t(bytes));
  return bytes;
}

// One stream's rows, head by head and slice by slice, from and to wherever they lie. Returns their bytes.
static int64_t tw_pass_rows(tw_session *s, const tw_state &c, int32_t stream, int32_t range, int32_t length, tw_direction way, char *data) {
  const tw_stream &t = tw_streams[stream];
  const int32_t *const gone = tw_gone_of(s, c, range);
  int64_t at = 0;
  if (tw_copied_whole(t, c)) return tw_pass(way, tw_slot(s, stream, range), data, t.slot);
  for (int32_t h = 0; h < c.heads; h++)
    for (int64_t row = 0, rows = length - (gone ? gone[h] : 0); row < rows; row += TW_SLICE) {
      const int64_t here = rows - row < TW_SLICE ? rows - row : TW_SLICE;
      char *const memory = tw_row_slot(s, stream, range, row) + h * t.head_bytes + row / t.block * t.block_bytes;
      at += tw_pass(way, memory, data + at, (here + t.block - 1) / t.block * t.block_bytes);
    }
  return at;
}

// Counts of lost rows come first: they say how many rows follow.
static bool tw_pass_gone(tw_session *s, const tw_state &c, int32_t range, int32_t length, tw_direction way, char *data) {
  int32_t *const gone = tw_gone_of(s, c, range);
  tw_pass(way, (char *)gone, data, int64_t(sizeof(int32_t)) * c.heads);
  for (int32_t h = 0; h < c.heads; h++)
    if (gone[h] < 0 || gone[h] > length) return false;
  return true;
}

static bool tw_ascending(tw_session *s, const tw_state &c, int32_t range, int32_t length) {
  for (int32_t h = 0; h < c.heads; h++) {
    const int32_t rows = length - tw_gone_of(s, c, range)[h];
    for (int32_t r = 0, last = -1; r < rows; r++) {
      const int32_t pos = ((int32_t *)tw_row_slot(s, c.pos, range, r))[int64_t(h) * c.context + r];
      if (pos <= last || pos >= length) return false;
      last = pos;
    }
  }
  return true;
}

// Exact rows: how many have been lost, then the others, stream by stream and head by head. -1 if that many cannot be lost.
static int64_t tw_pass_recent(tw_session *s, int32_t range, int32_t length, tw_direction way, char *data, int64_t bytes) {
  int32_t lost = s->lost[range];
  int64_t at = sizeof lost;
  if (way == TW_RESTORE && bytes < at) return -1;
  if (way == TW_SAVE) memcpy(data, &lost, sizeof lost);
  if (way == TW_RESTORE) memcpy(&lost, data, sizeof lost);
  if (lost < 0 || lost % TW_RECENT_STEP || lost > tw_recent_first(length)) return -1;
  for (int32_t i = 0; i < TW_NSTREAMS; i++) {
    const tw_stream &t = tw_streams[i];
    const int64_t from = tw_recent_at(t, lost), each = tw_recent_at(t, length) - from;
    if (t.kind == TW_RECENT && way == TW_RESTORE && bytes - at < each * t.heads) return -1;
    for (int64_t h = 0; t.kind == TW_RECENT && h < t.heads; h++)
      at += tw_pass(way, tw_recent_head(s, i, range, h) + from, data + at, each);
  }
  if (way == TW_RESTORE) s->lost[range] = lost, s->filled[range] = length;
  return at;
}

// Passes over all that a sequence of `length` tokens holds; -1 if what is read back cannot be. `bytes`: of data, when restoring.
static int64_t tw_pass_all(tw_session *s, int32_t range, int32_t length, tw_direction way, char *data, int64_t bytes) {
  int64_t at = TW_RECENT_ROWS ? tw_pass_recent(s, range, length, way, data, bytes) : 0;
  if (at < 0) return -1;
  for (int32_t n = 0; n < TW_NSTATES; n++) {
    const tw_state &c = tw_states[n];
    if (c.gone >= 0) {
      const int64_t own = int64_t(sizeof(int32_t)) * c.heads;
      if (way == TW_RESTORE && bytes - at < own) return -1;
      if (!tw_pass_gone(s, c, range, length, way, data + at)) return -1;
      at += own;
    }
    for (int32_t i = c.first; i < c.first + c.count; i++) {
      if (!tw_streams[i].nparts || tw_streams[i].kind == TW_RECENT) continue;  // it holds no rows, or they were passed
      if (way == TW_RESTORE && bytes - at < tw_pass_rows(s, c, i, range, length, TW_COUNT, nullptr)) return -1;
      at += tw_pass_rows(s, c, i, range, length, way, data + at);
    }
    if (way == TW_RESTORE && c.gone >= 0 && !tw_ascending(s, c, range, length)) return -1;
  }
  return way == TW_RESTORE && at != bytes ? -1 : at;
}
