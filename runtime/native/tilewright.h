/* The C interface of a compiled model. Every lib/LEVEL.so of an artifact exports exactly these functions.
 *
 * Functions that return int give TW_OK or an error code; tw_error() then says what was expected, what was got and
 * where. All arguments are checked: a wrong one is an error, never undefined behaviour. A session is used by one
 * thread at a time; several sessions may share one model.
 */
#ifndef TILEWRIGHT_H
#define TILEWRIGHT_H

#include <stdint.h>

#define TW_ABI 7

#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

enum { TW_OK = 0, TW_ARGUMENT = 1, TW_FILE = 2, TW_MEMORY = 3, TW_BUSY = 4 };

typedef struct tw_model tw_model;
typedef struct tw_session tw_session;

/* What the library was compiled for: token ids lie below `vocab`, a row of logits has `columns` floats. The next four
 * after `abi` are 0 if there is no step function. `follows`: results depend on how long a sequence is (tw_expect). A step's
 * tokens are grouped into query blocks of at most `block` rows; `block_columns` names the numbers that each block has.
 * `states`: how many caches there are. */
typedef struct tw_description {
  int32_t abi, context, vocab, columns, max_tokens, graphs, symbols, follows, block, states;
  int64_t weights_bytes, arena_bytes, sequence_bytes;
  const char *id, *level, *block_columns;
} tw_description;

const tw_description *tw_about(void);
const char *tw_error(void); /* of the last failed call on this thread */

/* Map DIR/weights.bin read-only, after checking its header and size. Close after the sessions or before: it is counted. */
int tw_open(const char *dir, tw_model **model);
/* The same over `bytes` bytes in memory that hold what DIR/weights.bin would; they must stay as they are until tw_close. */
int tw_open_memory(const void *weights, int64_t bytes, tw_model **model);
void tw_close(tw_model *model);

/* A session with room for `sequences` sequences, numbered from 0; memory is committed as it is touched.
 * threads 0: as many as the process may use (affinity and cgroup quota). A step never waits for a thread that the system
 * does not run, and uses fewer for a while where that costs time; results are the same at any number. */
int tw_session_new(tw_model *model, int32_t sequences, int32_t threads, tw_session **session);
void tw_session_free(tw_session *session);
int tw_set_threads(tw_session *session, int32_t threads);
int32_t tw_threads(const tw_session *session);

/* One step over `tokens` tokens of any mix of sequences: token ids[t] of sequence seq[t] at position pos[t] (rising within
 * a sequence; all earlier positions were stepped before). logits gets `nrows` rows of `columns` floats: those of tokens rows[r]. */
int tw_step(tw_session *session, int32_t tokens, const int32_t *ids, const int32_t *pos, const int32_t *seq, int32_t nrows,
            const int32_t *rows, float *logits);

/* Say how many tokens a sequence will have when those are in that come next, where they come in several steps. Some models
 * (`follows`) rotate by factors that depend on that length; without this call it is what the step itself makes it. Where a
 * sequence passes a length beyond which other factors hold for all of it, tw_step reads its earlier tokens again. */
int tw_expect(tw_session *session, int32_t sequence, int32_t length);

/* Caches that lose rows (`evicts` of tw_cache). A head holds rows in ascending order of position; row r of a head that has
 * lost `gone` rows and of a sequence of n tokens exists for r < n - gone. */
typedef struct tw_cache_description {
  const char *name, *key_type, *value_type; /* of the elements, empty where rows are packed */
  const char *select; /* how tokens with a budget choose blocks of rows (tw_choose); empty if they read all */
  int32_t heads, context, evicts, observes;
  int64_t key_bytes, value_bytes; /* of one row of one head */
} tw_cache_description;
int tw_cache(int32_t state, tw_cache_description *into);
enum { TW_READ_KEYS = 0, TW_READ_VALUES = 1, TW_READ_POSITIONS = 2, TW_READ_SCORES = 3 };
/* Rows `first` to `first + rows` of a head, one after the other: encoded keys or values as their parts lie in memory, i32
 * positions, f32 scores. tw_write_rows is the inverse. */
int tw_read_rows(tw_session *session, int32_t state, int32_t what, int32_t sequence, int32_t head, int32_t first, int32_t rows,
                 void *out, int64_t bytes);
int tw_write_rows(tw_session *session, int32_t state, int32_t what, int32_t sequence, int32_t head, int32_t first, int32_t rows,
                  const void *from, int64_t bytes);
/* How many rows a head has lost. */
int tw_gone(tw_session *session, int32_t state, int32_t sequence, int32_t head, int32_t *gone);
/* Of the rows of a head of a sequence of `length` tokens, keep these, ascending; the memory of the others is given back. */
int tw_keep(tw_session *session, int32_t state, int32_t sequence, int32_t head, int32_t length, int32_t count, const int32_t *rows);
/* In the next step, add the attention of these of its tokens to the scores of the rows that it goes to: `runs` of (first
 * token of the step, tokens, sequence, position of the first), each sequence at most once. */
int tw_observe(tw_session *session, int32_t runs, const int32_t *table);
/* In the next step, the token `row`, the only one of its sequence, reads at most `budget` blocks of the rows that each KV head
 * holds: `first` and `last` at their ends, and the best in between. budget 0: all rows. */
int tw_choose(tw_session *session, int32_t row, int32_t budget, int32_t first, int32_t last);
/* Forget the tokens of a sequence of `from` tokens from `to` on. */
int tw_truncate(tw_session *session, int32_t sequence, int32_t from, int32_t to);

/* The least length, other than 0, to which a sequence can be cut: by steps that go on from there, and by tw_fork. More than 0
 * only where caches keep exact rows of recent tokens, of which those before are gone. */
int32_t tw_least(const tw_session *session, int32_t sequence);

/* Of the last step: the tokens whose sequences' common beginning was read once for all of them. */
int32_t tw_together(const tw_session *session);

/* What a sequence of `length` tokens holds, as one piece: with `out` NULL, only how many bytes that takes. tw_restore reads it
 * back into a sequence of the same model, checks it, and is told the sequence's ids. */
int tw_save(tw_session *session, int32_t sequence, int32_t length, void *out, int64_t *bytes);
int tw_restore(tw_session *session, int32_t sequence, int32_t length, const int32_t *ids, const void *from, int64_t bytes);

/* Copy the first `length` positions of one sequence, which is all that it has if caches lose rows, over another; forget a
 * sequence and give its memory back. */
int tw_fork(tw_session *session, int32_t from, int32_t to, int32_t length);
int tw_drop(tw_session *session, int32_t sequence);

/* Graphs without state: tensors row-major, in the order of the signature; symbols in the order of tw_symbol. */
int32_t tw_graph(const char *name); /* its number, or -1 */
const char *tw_symbol(int32_t symbol, int64_t *lo, int64_t *hi); /* NULL past the last */
/* Name, dtype and shape of tensor `index` of a graph (output: 1, input: 0) for these symbols; NULL past the last. */
const char *tw_tensor(int32_t graph, int32_t output, int32_t index, const int64_t *symbols, const char **dtype, int32_t *rank,
                      int64_t dims[8]);
int tw_run(tw_session *session, int32_t graph, const int64_t *symbols, const void *const *inputs, const int64_t *input_bytes,
           void *const *outputs, const int64_t *output_bytes);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
