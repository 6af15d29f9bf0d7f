// Which memory holds the rows of a sequence. Every sequence appends to a range of its own; a fork reads whole slices of rows
// where they already lie, so that sequences with a common beginning share it.
//
// `home`, a tensor of every cache, says for each slice of a range's sequence in whose range the slice lies. A range lives as long
// as a sequence appends to it or reads slices of it. Slices that others read are never written again: who would write to them
// goes on in a new range. Included by tw_cache.h.
#pragma once
#include "tw_recent.h"

static char *tw_slot(tw_session *s, int32_t stream, int32_t range) { return s->streams[stream] + range * tw_streams[stream].slot; }

static int32_t *tw_homes(tw_session *s, int32_t range) { return (int32_t *)tw_slot(s, tw_states[0].home, range); }

static void tw_set_home(tw_session *s, int32_t range, int32_t slice, int32_t home) {
  for (int32_t i = 0; i < TW_NSTATES; i++) ((int32_t *)tw_slot(s, tw_states[i].home, range))[slice] = home;
}

// ---------------------------------------------------------------- lives of ranges
static void tw_unref(tw_session *s, int32_t range) {
  if (--s->refs[range]) {
    if (s->refs[range] == 1) s->shared[range] = 0;  // its owner alone, or the last reader of an owner that is gone
    return;
  }
  s->shared[range] = 0;
  for (int32_t i = 0; i < TW_NSTREAMS; i++) {
    tw_release(tw_slot(s, i, range), tw_streams[i].slot);
    if (tw_streams[i].kind == TW_GONE || tw_streams[i].kind == TW_SEEN) memset(tw_slot(s, i, range), 0, size_t(tw_streams[i].slot));
  }
}

// Reads a slice where another range holds it.
static void tw_share(tw_session *s, int32_t range, int32_t slice, int32_t home) {
  tw_set_home(s, range, slice, home);
  s->refs[home]++;
  if (s->shared[home] <= slice) s->shared[home] = slice + 1;
}

static bool tw_copied_whole(const tw_stream &t, const tw_state &c) { return t.heads != c.heads || TW_SLICE % t.block; }

// Copies a slice's rows, keys, values and positions, from one range to another.
static void tw_copy_slice(tw_session *s, int32_t to, int32_t from, int32_t slice) {
  for (int32_t n = 0; n < TW_NSTATES; n++)
    for (int32_t i = tw_states[n].first; i < tw_states[n].first + tw_states[n].count; i++) {
      const tw_stream &t = tw_streams[i];
      const int64_t bytes = TW_SLICE / t.block * t.block_bytes, at = slice * bytes;
      for (int64_t h = 0; h < t.heads && (t.kind == TW_ROWS || t.kind == TW_POSITIONS); h++)
        memcpy(tw_slot(s, i, to) + h * t.head_bytes + at, tw_slot(s, i, from) + h * t.head_bytes + at, size_t(bytes));
    }
}

// Brings slices `first` to `last` (exclusive) of a range into its own memory; later ones are taken to hold nothing.
static void tw_take_in(tw_session *s, int32_t range, int32_t first, int32_t last) {
  int32_t *const homes = tw_homes(s, range);
  for (int32_t k = first; k < TW_SLICES; k++) {
    const int32_t home = homes[k];
    if (home == range) continue;
    if (k < last) tw_copy_slice(s, range, home, k);
    tw_set_home(s, range, k, range);
    tw_unref(s, home);
  }
}

static int32_t tw_free_range(tw_session *s) {
  for (int32_t r = 0; r < s->ranges; r++)
    if (!s->refs[r]) return r;
  return -1;
}

// A range that nobody uses. There are as many as sequences and as many again; where ranges of sequences that are gone fill them,
// every sequence takes in what it reads of others, after which there is one for each.
static int32_t tw_new_range(tw_session *s) {
  int32_t r = tw_free_range(s);
  for (int32_t q = 0; r < 0 && q < s->sequences; q++)
    if (s->range_of[q] >= 0) tw_take_in(s, s->range_of[q], 0, TW_SLICES), r = tw_free_range(s);
  if (r < 0) return r;
  s->refs[r] = 1;
  for (int32_t k = 0; k < TW_SLICES; k++) tw_set_home(s, r, k, r);
  return r;
}

// The range of a sequence, which gets one with its first token; -1 if there is none.
static int32_t tw_range(tw_session *s, int32_t sequence) {
  if (s->range_of[sequence] < 0) s->range_of[sequence] = tw_new_range(s);
  return s->range_of[sequence];
}

static void tw_leave_range(tw_session *s, int32_t sequence) {
  const int32_t range = s->range_of[sequence];
  s->range_of[sequence] = -1;
  if (range < 0) return;
  tw_recent_forget(s, range);
  tw_take_in(s, range, 0, 0);
  tw_unref(s, range);
}

// ---------------------------------------------------------------- writing and sharing
static void tw_copy_counts(tw_session *s, int32_t to, int32_t from) {
  for (int32_t i = 0; i < TW_NSTREAMS; i++)
    if (tw_streams[i].kind == TW_GONE || tw_streams[i].kind == TW_SCORES)
      memcpy(tw_slot(s, i, to), tw_slot(s, i, from), size_t(tw_streams[i].slot));
}

// Lets a sequence write from slice `first` on: in its own memory, which nobody else reads there. Slices below `last` hold rows.
// Returns its range, -1 if there is no memory for it.
static int32_t tw_writable(tw_session *s, int32_t sequence, int32_t first, int32_t last) {
  const int32_t range = tw_range(s, sequence);
  if (range < 0 || s->shared[range] <= first) {
    if (range >= 0) tw_take_in(s, range, first, last);
    return range;
  }
  const int32_t own = tw_new_range(s);
  if (own < 0) return own;
  const int32_t *const homes = tw_homes(s, range);
  for (int32_t k = 0; k < first; k++) tw_share(s, own, k, homes[k]);
  for (int32_t k = first; k < last; k++) tw_copy_slice(s, own, homes[k], k);
  tw_copy_counts(s, own, range);
  tw_recent_copy(s, own, range, TW_CONTEXT);
  tw_leave_range(s, sequence);
  return s->range_of[sequence] = own;
}

// Whole slices of rows that every head of every cache of a sequence of `length` tokens holds.
static int32_t tw_whole_slices(tw_session *s, int32_t range, int32_t length) {
  int32_t least = length / TW_SLICE;
  for (int32_t n = 0; n < TW_NSTATES; n++) {
    const tw_state &c = tw_states[n];
    for (int32_t i = c.first; i < c.first + c.count; i++)
      if (tw_streams[i].kind == TW_ROWS && tw_copied_whole(tw_streams[i], c)) return 0;
    for (int32_t h = 0; c.gone >= 0 && h < c.heads; h++) {
      const int32_t rows = length - ((int32_t *)tw_slot(s, c.gone, range))[h];
      if (rows / TW_SLICE < least) least = rows / TW_SLICE;
    }
  }
  return least;
}

// Copies what is not shared: the rows of each head from slice `first` on, wherever they lie, and counts.
static void tw_copy_rest(tw_session *s, int32_t to, int32_t from, int32_t first, int32_t length) {
  const int32_t *const homes = tw_homes(s, from);
  for (int32_t n = 0; n < TW_NSTATES; n++) {
    const tw_state &c = tw_states[n];
    for (int32_t i = c.first; i < c.first + c.count; i++) {
      const tw_stream &t = tw_streams[i];
      if (t.kind != TW_ROWS && t.kind != TW_POSITIONS) continue;
      if (tw_copied_whole(t, c)) {
        memcpy(tw_slot(s, i, to), tw_slot(s, i, from), size_t(t.slot));
        continue;
      }
      for (int32_t h = 0; h < c.heads; h++) {
        const int64_t rows = length - (c.gone < 0 ? 0 : ((int32_t *)tw_slot(s, c.gone, from))[h]);
        for (int64_t row = int64_t(first) * TW_SLICE; row < rows; row += TW_SLICE) {
          const int64_t here = rows - row < TW_SLICE ? rows - row : TW_SLICE;
          const int64_t at = h * t.head_bytes + row / t.block * t.block_bytes, bytes = (here + t.block - 1) / t.block * t.block_bytes;
          memcpy(tw_slot(s, i, to) + at, tw_slot(s, i, homes[row / TW_SLICE]) + at, size_t(bytes));
        }
      }
    }
  }
  tw_copy_counts(s, to, from);
}

// Gives sequence `to` the rows of a sequence of `length` tokens.
static int tw_fork_rows(tw_session *s, int32_t from, int32_t to, int32_t length) {
  if (length && length < tw_recent_least(s, s->range_of[from])) return tw_recent_refuse(s, s->range_of[from], length, "tw_fork");
  tw_leave_range(s, to);
  const int32_t source = tw_range(s, from), target = source < 0 ? -1 : tw_range(s, to);
  if (target < 0) return tw_fail(TW_MEMORY, "tw_fork: no memory for sequence %d", to);
  const int32_t whole = tw_whole_slices(s, source, length);
  const int32_t *const homes = tw_homes(s, source);
  for (int32_t k = 0; k < whole; k++) tw_share(s, target, k, homes[k]);
  tw_copy_rest(s, target, source, whole, length);
  tw_recent_copy(s, target, source, length);
  return TW_OK;
}
