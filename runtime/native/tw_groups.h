// Sequences that decode together and hold their first slices in common: the step reads these once for all of them.
//
// Included by tw_runtime.h. Where slices lie says what is held in common (tw_ranges.h).
#pragma once
#include "tw_cache.h"

#if TW_STEP >= 0
// How many whole slices before position `pos` two ranges hold in the same memory.
static int32_t tw_common(tw_session *s, int32_t a, int32_t b, int32_t rows) {
  const int32_t *const x = tw_homes(s, a), *const y = tw_homes(s, b);
  int32_t n = 0;
  while (n < rows / TW_SLICE && x[n] == y[n]) n++;
  return n;
}

static void tw_set_skip(tw_session *s, int32_t range, int32_t slices) {
  for (int32_t i = 0; i < TW_NSTATES; i++)
    if (tw_states[i].skip >= 0) *(int32_t *)tw_slot(s, tw_states[i].skip, range) = slices;
}

// Rows that a sequence holds before the token at `pos`, in the head that has lost most.
static int32_t tw_rows_before(tw_session *s, int32_t range, int32_t pos) {
  int32_t lost = 0;
  for (int32_t c = 0; c < TW_NSTATES; c++)
    for (int32_t h = 0; tw_states[c].gone >= 0 && h < tw_states[c].heads; h++) {
      const int32_t gone = tw_gone_of(s, tw_states[c], range)[h];
      lost = gone > lost ? gone : lost;
    }
  return pos > lost ? pos - lost : 0;
}

// Rows before a token that sequences may read together: none that it reads elsewhere.
static int32_t tw_shareable(tw_session *s, int32_t range, int32_t pos) {
  return TW_RECENT_ROWS ? tw_recent_first(pos) : tw_rows_before(s, range, pos);
}

// Groups of consecutive rows of a step of single tokens, (first row, rows, range, slices), whose ranges then skip these slices.
static int32_t tw_find_groups(tw_session *s, int32_t n, const int32_t *pos, const int32_t *range, int32_t *groups) {
  int32_t count = 0;
  s->together = 0;
  for (int32_t i = 0, next; i < n; i = next) {
    next = i + 1;
    const int32_t rows = tw_shareable(s, range[i], pos[i]);
    int32_t slices = 0;
    for (; next < n; next++) {
      const int32_t held = tw_shareable(s, range[next], pos[next]), common = tw_common(s, range[i], range[next], rows < held ? rows : held);
      if (!common || (slices && common < slices)) break;
      if (!slices) slices = common;
    }
    if (!slices) continue;
    const int32_t group[TW_BLOCK_COLUMNS] = {i, next - i, range[i], slices};
    memcpy(groups + TW_BLOCK_COLUMNS * count++, group, sizeof group);
    for (int32_t k = i; k < next; k++) tw_set_skip(s, range[k], slices);
    s->together += next - i;
  }
  return count;
}

static void tw_forget_groups(tw_session *s, int32_t count, const int32_t *range, const int32_t *groups) {
  for (int32_t g = 0; g < count; g++)
    for (int32_t k = 0; k < groups[TW_BLOCK_COLUMNS * g + 1]; k++) tw_set_skip(s, range[groups[TW_BLOCK_COLUMNS * g] + k], 0);
}
#endif
