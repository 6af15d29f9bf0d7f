// The rows of caches: read, written, moved, counted. Caches that lose rows keep the rest together, in ascending order of position.
//
// Included by tw_runtime.h. A row is found by the digits of its stream's layout, so every encoding is moved as it lies.
#pragma once
#include "tw_ranges.h"

static int tw_check_slot(tw_session *s, int32_t slot, const char *what) {
  if (!s || slot < 0 || slot >= s->sequences)
    return tw_fail(TW_ARGUMENT, "%s: sequence %d, expected 0 to %d", what, slot, s ? s->sequences - 1 : -1);
  return TW_OK;
}

// ---------------------------------------------------------------- places of rows
static int64_t tw_row_at(const tw_part &p, int32_t head, int64_t row) {
  int64_t at = p.base + head * p.head;
  for (int32_t i = 0; i < p.ndigits; i++) {
    const tw_digit &d = tw_digits[p.digits + i];
    at += (d.size ? row / d.step % d.size : row / d.step) * d.stride;
  }
  return at;
}

static void tw_copy_bits(char *to, int64_t to_bit, const char *from, int64_t from_bit, int64_t bits) {
  if (to_bit % 8 == 0 && from_bit % 8 == 0 && bits % 8 == 0) {
    memmove(to + to_bit / 8, from + from_bit / 8, size_t(bits / 8));
    return;
  }
  for (int64_t i = 0; i < bits; i++) {
    const int64_t t = to_bit + i, f = from_bit + i;
    const int bit = from[f / 8] >> (f % 8) & 1;
    to[t / 8] = char((to[t / 8] & ~(1 << (t % 8))) | bit << (t % 8));
  }
}

static int64_t tw_row_bytes(const tw_stream &t) {
  int64_t bits = 0;
  for (int32_t p = 0; p < t.nparts; p++)
    for (int32_t i = 0; i < tw_row_parts[t.parts + p].npieces; i++) bits += tw_pieces[tw_row_parts[t.parts + p].pieces + i].bits;
  return (bits + 7) / 8;
}

// Copies one row between the stream and packed memory, in whichever direction.
static void tw_row_packed(const tw_stream &t, char *base, int32_t head, int64_t row, char *packed, bool write) {
  int64_t at = 0;
  for (int32_t p = 0; p < t.nparts; p++) {
    const tw_part &part = tw_row_parts[t.parts + p];
    const int64_t place = tw_row_at(part, head, row);
    for (int32_t i = 0; i < part.npieces; i++) {
      const tw_piece &piece = tw_pieces[part.pieces + i];
      if (write) tw_copy_bits(base, place + piece.first, packed, at, piece.bits);
      else tw_copy_bits(packed, at, base, place + piece.first, piece.bits);
      at += piece.bits;
    }
  }
}

static void tw_move_row(const tw_stream &t, char *base, int32_t head, int64_t to, int64_t from) {
  for (int32_t p = 0; p < t.nparts; p++) {
    const tw_part &part = tw_row_parts[t.parts + p];
    const int64_t a = tw_row_at(part, head, to), b = tw_row_at(part, head, from);
    for (int32_t i = 0; i < part.npieces; i++) {
      const tw_piece &piece = tw_pieces[part.pieces + i];
      tw_copy_bits(base, a + piece.first, base, b + piece.first, piece.bits);
    }
  }
}

// ---------------------------------------------------------------- counts
static int32_t *tw_gone_of(tw_session *s, const tw_state &c, int32_t range) {
  return c.gone < 0 ? nullptr : (int32_t *)tw_slot(s, c.gone, range);
}

// Summaries of blocks are made anew from row `row` on, of all heads (head -1) or one.
static void tw_forget_summaries(tw_session *s, const tw_state &c, int32_t range, int32_t head, int32_t row) {
  int32_t *const seen = c.seen < 0 ? nullptr : (int32_t *)tw_slot(s, c.seen, range);
  for (int32_t h = 0; seen && h < c.heads; h++)
    if ((head < 0 || h == head) && seen[h] > row) seen[h] = row < 0 ? 0 : row;
}

// The memory in which a row of a range's sequence lies.
static char *tw_row_slot(tw_session *s, int32_t stream, int32_t range, int64_t row) {
  const tw_kind kind = tw_streams[stream].kind;
  return tw_slot(s, stream, kind == TW_ROWS || kind == TW_POSITIONS ? tw_homes(s, range)[row / TW_SLICE] : range);
}

// Gives back the memory after the first `rows` rows of a head.
static void tw_release_rows(tw_session *s, const tw_state &c, int32_t range, int32_t head, int64_t rows) {
  for (int32_t i = c.first; i < c.first + c.count; i++) {
    const tw_stream &t = tw_streams[i];
    const int64_t used = (rows + t.block - 1) / t.block * t.block_bytes;
    if (t.nparts && t.heads == c.heads && used < t.head_bytes)
      tw_release(tw_slot(s, i, range) + head * t.head_bytes + used, t.head_bytes - used);
  }
}

static int tw_check_cache(tw_session *s, int32_t state, int32_t sequence, int32_t head, const char *what) {
  const int rc = tw_check_slot(s, sequence, what);
  if (rc != TW_OK) return rc;
  if (state < 0 || state >= TW_NSTATES) return tw_fail(TW_ARGUMENT, "%s: cache %d, expected 0 to %d", what, state, TW_NSTATES - 1);
  if (head < 0 || head >= tw_states[state].heads)
    return tw_fail(TW_ARGUMENT, "%s: head %d, expected 0 to %d", what, head, tw_states[state].heads - 1);
  return TW_OK;
}

static int tw_check_rows(const tw_state &c, int32_t gone, int32_t length, int32_t count, const int32_t *rows) {
  if (!rows && count) return tw_fail(TW_ARGUMENT, "tw_keep: rows is NULL");
  if (length < gone || length > c.context || count < 0)
    return tw_fail(TW_ARGUMENT, "tw_keep: %d rows of %d tokens, of which %d rows are gone", count, length, gone);
  for (int32_t i = 0; i < count; i++)
    if (rows[i] < (i ? rows[i - 1] + 1 : 0) || rows[i] >= length - gone)
      return tw_fail(TW_ARGUMENT, "tw_keep: rows[%d] is %d, expected ascending rows below %d", i, rows[i], length - gone);
  return TW_OK;
}

static int tw_stream_of(const tw_state &c, int32_t what) {
  const int32_t streams[4] = {c.first, c.first + 1, c.pos, c.score};
  return what < 0 || what > 3 ? -1 : streams[what];
}
