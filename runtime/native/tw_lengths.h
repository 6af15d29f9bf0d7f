// Lengths of sequences, for models whose rotary factors depend on them: the step's input `length`, and the tokens of a sequence
// read again where it passes a length beyond which other factors hold for all of it, its keys in the cache included.
//
// Included by tw_runtime.h, which runs the steps. A model without such factors compiles nothing of this.
#pragma once
#include "tw_model.h"

#if TW_STEP >= 0 && TW_FOLLOWS
static const int32_t tw_switches[] = {TW_SWITCHES};

// How many of the switches a length lies beyond: sequences of one phase have the same factors.
static int32_t tw_phase(int32_t length) {
  int32_t phase = 0;
  for (int k = 0; k < TW_NSWITCHES; k++) phase += length > tw_switches[k];
  return phase;
}

// How long a sequence of this step is: up to its last token, or as long as the caller expects it to be.
static int32_t tw_length(const tw_session *s, int32_t sequence) {
  return s->last[sequence] + 1 > s->expected[sequence] ? s->last[sequence] + 1 : s->expected[sequence];
}

static void tw_fill_lengths(const tw_session *s, int32_t n, const int32_t *seq, int32_t *length) {
  for (int32_t i = 0; i < n; i++) length[i] = tw_length(s, seq[i]);
}

// After a step: what it read, under which factors.
static void tw_remember(tw_session *s, int32_t n, const int32_t *ids, const int32_t *pos, const int32_t *seq) {
  for (int32_t i = 0; i < n; i++) {
    if (TW_NSWITCHES) s->history[int64_t(seq[i]) * TW_CONTEXT + pos[i]] = ids[i];
    s->phase[seq[i]] = tw_phase(tw_length(s, seq[i]));
  }
  for (int32_t i = 0; i < n; i++)
    if (s->last[seq[i]] + 1 >= s->expected[seq[i]]) s->expected[seq[i]] = 0;
}

// Marks the sequences of a checked step that hold tokens under other factors than are needed now: `again` is then their length.
static bool tw_mark(tw_session *s, int32_t n, const int32_t *pos, const int32_t *seq) {
  bool any = false;
  for (int32_t i = n - 1; i >= 0; i--) s->first[seq[i]] = pos[i];
  for (int32_t i = 0; i < n; i++) {
    const int32_t q = seq[i], length = tw_length(s, q);
    if (s->first[q] > 0 && tw_phase(length) != s->phase[q]) s->again[q] = length, any = true;
  }
  return any;
}
#endif
