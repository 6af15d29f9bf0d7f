// What a generated library is made of: kernels and constant tables of calls. Included before the generated part.
//
// A pointer is (base, offset): base 0 is the arena, 1 the weights, then the plan's inputs, outputs and the state streams.
#pragma once
#include <stdint.h>

#include "tilewright.h"

typedef void (*tw_kernel)(void *const *pointers, const int64_t *dims, int64_t thread, int64_t threads);

struct tw_ref {
  int32_t base;
  int64_t offset;
};

// symbol OP value with op 0..4 for <= < >= > ==
struct tw_condition {
  int32_t symbol, op;
  int64_t value;
};

// `wait`: an earlier call since the last wait touches memory that this one needs. `parts`: into how many the call is cut while
// there are few rows. `blocks`: which of the plan's values says how many there are to be divided. refs, dims, conditions:
// where in the tables.
struct tw_call {
  tw_kernel kernel;
  int32_t refs, nrefs, dims, ndims, conditions, nconditions;
  bool wait;
  int32_t parts, blocks;
};

// `dims` and `bytes`: positions in the plan's values.
struct tw_io {
  const char *name, *dtype;
  int32_t rank;
  int32_t dims[8];
  int32_t bytes;
};

// A symbol whose value the calls before `call` have left at `at`, as an i32.
struct tw_counted {
  int32_t symbol, call;
  tw_ref at;
};

struct tw_plan {
  const char *name;
  const tw_call *calls;
  int32_t ncalls;
  const tw_io *inputs;
  int32_t ninputs;
  const tw_io *outputs;
  int32_t noutputs;
  void (*values)(const int64_t *symbols, int64_t *values);
  bool stateful;
  const tw_counted *counted = nullptr;
  int32_t ncounted = 0;
};

struct tw_range {
  const char *name;
  int64_t lo, hi;
};

// What a tensor of a state is: encoded rows (keys, values), the positions of rows, how many rows a head has lost, the
// attention that rows got, in which range each slice of rows lies; how many slices were folded for several sequences
// together, and the state that they left; of how many rows there are summaries, and what is made anew from rows where that
// number is too small.
enum tw_kind { TW_ROWS, TW_POSITIONS, TW_GONE, TW_SCORES, TW_HOMES, TW_SKIP, TW_CARRY, TW_SEEN, TW_DERIVED, TW_RECENT };

// A row's place: row / step % size * stride bits, summed over digits (size 0: no limit).
struct tw_digit {
  int64_t step, size, stride;
};

// Bits of a row that lie together, from the place of the row on.
struct tw_piece {
  int64_t first, bits;
};

// One stream of an encoding: digits and pieces are positions in the tables.
struct tw_part {
  int64_t base, head;
  int32_t digits, ndigits, pieces, npieces;
};

// A tensor of one state: `slot` bytes a sequence; each of `heads` heads keeps every `block` positions in `block_bytes`.
struct tw_stream {
  const char *name;
  int64_t slot, heads, head_bytes, block, block_bytes;
  tw_kind kind;
  int32_t parts, nparts;
};

// A cache: streams first to first + count of the table; `gone`, `pos`, `score`, `skip` and `seen` are -1 if it keeps none of
// them. `select`: how single tokens choose blocks of rows, empty if they read all.
struct tw_state {
  const char *name, *key_type, *value_type, *select;
  int32_t heads, context, first, count, home, gone, pos, score, skip, seen;
};
