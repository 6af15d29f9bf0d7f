// The main program of one rebuilt plan under AddressSanitizer. Included after the generated plan, whose tables it walks.
//
// Every step or run is carried out three times: by the runtime, its arena and weights poisoned but for the buffers that the plan
// declares; and twice over memory of its own for each argument, exactly as large as the argument's type is now, filled with two
// different patterns. ASan reports accesses outside; results that differ mean bytes that were shared, or read before written.
#pragma once
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t h_state = 1;
static uint32_t h_random() { return (h_state = h_state * 1664525u + 1013904223u) >> 8; }

static char *h_take(int64_t bytes, int fill) {
  void *p = nullptr;
  if (posix_memalign(&p, 64, size_t(bytes))) exit(4);
  memset(p, fill, size_t(bytes));
  return (char *)p;
}

static void h_values(const char *dtype, char *to, int64_t bytes) {
  if (!strcmp(dtype, "f32"))
    for (int64_t i = 0; i < bytes / 4; i++) ((float *)to)[i] = float(int32_t(h_random() % 4001) - 2000) / 1000;
  else if (!strcmp(dtype, "i32"))
    for (int64_t i = 0; i < bytes / 4; i++) ((int32_t *)to)[i] = h_random() % 16 ? int32_t(h_random() % 40) - 3 : int32_t(h_random() << 8);
  else
    for (int64_t i = 0; i < bytes; i++) to[i] = char(h_random() % (strcmp(dtype, "bool") ? 256 : 2));
}

// Memory of the plan's arguments: inputs, weights and streams stay, the rest is new for each run.
struct h_world {
  char *mem[H_MEMS];
};

static void h_run(h_world &w, int s, const int64_t *symbols, int fill, int threads) {
  const tw_plan &p = tw_plans[0];
  int64_t values[TW_MAX_VALUES];
  p.values(symbols, values);
  for (int i = 0; i < H_MEMS; i++)
    if (h_kind[i] == H_BUFFER) free(w.mem[i]), w.mem[i] = h_take(h_bytes[s][i], fill);
  for (int i = 0, at = 0; i < p.ncalls; at += p.calls[i++].nrefs) {
    const tw_call &c = p.calls[i];
    bool run = true;
    for (int k = 0; k < c.nconditions; k++) run = run && tw_holds(tw_conditions[c.conditions + k], symbols);
    if (!run) continue;
    void *pointers[TW_MAX_REFS];
    int64_t dims[TW_MAX_DIMS];
    for (int k = 0; k < c.nrefs; k++) pointers[k] = w.mem[h_args[at + k]];
    for (int k = 0; k < c.ndims; k++) dims[k] = values[tw_dims[c.dims + k]];
    for (int t = 0; t < threads; t++) c.kernel(pointers, dims, t, threads);
  }
}

static h_world h_fresh(const tw_model *m, const tw_session *s) {
  h_world w = {};
  for (int i = 0; i < H_MEMS; i++) {
    if (h_kind[i] == H_WEIGHT) w.mem[i] = h_take(h_bytes[0][i], 0), memcpy(w.mem[i], m->weights + h_places[i], size_t(h_bytes[0][i]));
    if (h_kind[i] != H_STREAM) continue;
    const tw_stream &t = tw_streams[h_places[i]];
    w.mem[i] = h_take(t.slot * s->ranges, 0);
    for (int64_t r = 0; t.kind == TW_HOMES && r < s->ranges; r++)  // every slice where it is written
      for (int64_t k = 0; k < t.slot / 4; k++) ((int32_t *)(w.mem[i] + r * t.slot))[k] = int32_t(r);
  }
  return w;
}

static void h_fence(tw_model *m, tw_session *s) {
  ASAN_POISON_MEMORY_REGION(s->arena, TW_ARENA);
  ASAN_POISON_MEMORY_REGION(m->weights, TW_WEIGHTS);
  for (int i = 0; i < TW_NSTREAMS; i++) ASAN_POISON_MEMORY_REGION(s->streams[i] + tw_streams[i].slot * s->ranges, 4096);
  for (int i = 0; i < H_MEMS; i++) {
    if (h_kind[i] == H_WEIGHT) ASAN_UNPOISON_MEMORY_REGION(m->weights + h_places[i], h_bytes[0][i]);
    if (h_kind[i] == H_BUFFER) ASAN_UNPOISON_MEMORY_REGION(s->arena + h_places[i], h_rooms[i]);
  }
}

static void h_same(const char *a, const char *b, int64_t bytes, int s, int output, const char *what) {
  for (int64_t k = 0; k < bytes; k++)
    if (a[k] != b[k]) {
      printf("MISMATCH %s: set %d, result %d, byte %lld of %lld\n", what, s, output, (long long)k, (long long)bytes);
      exit(3);
    }
}

#if TW_STEP >= 0
// A token that is the only one of its sequence reads two blocks of rows at most.
static void h_choose(tw_session *s, int n, const int32_t *q, int32_t *choices) {
  memset(choices, 0, sizeof(int32_t) * TW_CHOICE_COLUMNS * n);
  for (int i = 0; i < n; i++) {
    int32_t *const c = choices + TW_CHOICE_COLUMNS * i;
    if ((i && q[i - 1] == q[i]) || (i + 1 < n && q[i + 1] == q[i]) || tw_choose(s, i, 2, 0, 1) != TW_OK) continue;
    c[0] = 2, c[2] = 1;
  }
}

// Tokens of two sequences: T of them in `h_steps`, as many of the first sequence as the second number says.
static int h_step(tw_session *s, int n, int first, int rows, int32_t *pos, const char *const *in, char *out) {
  int32_t *ids = (int32_t *)in[0], *p = (int32_t *)in[1], *q = (int32_t *)in[2], *r = (int32_t *)in[4];
  for (int i = 0; i < n; i++) {
    q[i] = i < first ? 0 : 1;
    p[i] = pos[q[i]]++;
    ids[i] = int32_t(h_random() % TW_VOCAB);
  }
  for (int i = 0; i < rows; i++) r[i] = n - 1 - i * (n - 1);
  if (TW_SELECTS) h_choose(s, n, q, (int32_t *)in[8]);
  int32_t most;
  tw_block_table(n, p, q, (int32_t *)in[3], &most);
  return tw_step(s, n, ids, p, q, rows, r, (float *)out);
}
#endif

int main(int argc, char **argv) {
  tw_model *m;
  tw_session *s;
  if (argc < 2 || tw_open(argv[1], &m) != TW_OK || tw_session_new(m, H_SEQUENCES, 1, &s) != TW_OK) return printf("refused %s\n", tw_error()), 0;
  h_world a = h_fresh(m, s), b = h_fresh(m, s);
  h_fence(m, s);
  const tw_plan &p = tw_plans[0];
  [[maybe_unused]] int32_t pos[2] = {0, 0};
  for (int set = 0; set < H_SETS; set++) {
    const int64_t *symbols = h_symbols[set];
    if (tw_check_symbols(0, symbols) != TW_OK) {
      printf("refused %s\n", tw_error());
      continue;
    }
    char *in[TW_MAX_BASES], *out[TW_MAX_BASES];
    int64_t in_bytes[TW_MAX_BASES], out_bytes[TW_MAX_BASES];
    for (int i = 0; i < p.ninputs; i++) {
      in_bytes[i] = h_bytes[set][h_inputs[i]];
      in[i] = h_take(in_bytes[i], 0);
      h_values(p.inputs[i].dtype, in[i], in_bytes[i]);
      a.mem[h_inputs[i]] = b.mem[h_inputs[i]] = in[i];
    }
    for (int i = 0; i < p.noutputs; i++) out[i] = h_take(out_bytes[i] = h_bytes[set][h_outputs[i]], 0x5a);
#if TW_STEP >= 0
    const char *by_name[] = {H_STEP_INPUTS};
    const int rc = h_step(s, h_steps[set][0], h_steps[set][1], h_steps[set][2], pos, by_name, out[0]);
#else
    const int rc = tw_run(s, 0, symbols, (const void *const *)in, in_bytes, (void *const *)out, out_bytes);
#endif
    if (rc != TW_OK) {
      printf("refused %s\n", tw_error());
      continue;
    }
    h_run(a, set, symbols, 0xff, 1);
    h_run(b, set, symbols, 0x11, 3);
    for (int i = 0; i < p.noutputs; i++) {
      const int o = h_outputs[i];
      h_same(a.mem[o], b.mem[o], out_bytes[i], set, i, "never written");
      h_same(a.mem[o], out[i], out_bytes[i], set, i, "shared bytes");
    }
    printf("ran set %d\n", set);
  }
  return 0;
}
