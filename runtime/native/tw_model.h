// Models and sessions of tilewright.h: the weights mapped read-only, memory for steps and caches reserved, errors as text.
//
// Included by tw_runtime.h, after the generated tables. Uses no C++ library at run time.
#pragma once
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tw_calls.h"

// Entries of one array of a step: 64-byte aligned, room for every token and row.
#define TW_STRIDE ((TW_MAX_TOKENS + 15) / 16 * 16)

// The step's inputs in memory of the session, TW_STRIDE numbers apart (`ir/plan/step.py` states the protocol). A query block
// has four numbers: first row, rows, sequence, first position.
enum { TW_BLOCK_COLUMNS = 4 };
#define TW_BLOCK_NAMES "row rows sequence position"
// How many blocks of cached rows a token may read (0: all rows), and how many of these are the first and the last ones.
enum { TW_CHOICE_COLUMNS = 3 };
enum { TW_OWN_IDS, TW_OWN_POS, TW_OWN_SEQ, TW_OWN_ROWS, TW_OWN_BLOCKS, TW_OWN_LENGTH = TW_OWN_BLOCKS + TW_BLOCK_COLUMNS, TW_OWN_RUNS,
       TW_OWN_RANGE = TW_OWN_RUNS + TW_BLOCK_COLUMNS, TW_OWN_GROUPS, TW_OWN_CHOICES = TW_OWN_GROUPS + TW_BLOCK_COLUMNS,
       TW_OWN_NONE = TW_OWN_CHOICES + TW_CHOICE_COLUMNS, TW_OWN_ARRAYS = TW_OWN_NONE + TW_CHOICE_COLUMNS };

static thread_local char tw_message[512];

__attribute__((format(printf, 2, 3))) static int tw_fail(int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(tw_message, sizeof tw_message, format, args);
  va_end(args);
  return code;
}

struct tw_model {
  std::atomic<int32_t> users;
  char *weights;
  int fd;           // of the weights: what is mapped, whatever the path has come to name; -1: they are the caller's memory
  struct stat was;  // as they were when they were mapped
  char path[4096];
};

struct tw_session {
  tw_model *model;
  int32_t sequences, ranges;
  char *arena;
  char *streams[TW_NSTREAMS + 1];
  int32_t *tokens;  // the step's inputs, TW_STRIDE apart
  int32_t *range_of, *refs, *shared;  // of sequences, and of ranges: see tw_ranges.h
  int32_t *lost, *filled;             // of ranges: see tw_recent.h
  int32_t together; // rows of the last step whose beginning was read once for all
  int32_t runs;     // of observed tokens in the next step
  bool chooses;     // whether tokens of the next step have budgets
  int32_t *last;    // highest position of each sequence in this step
  int32_t *expected, *phase, *first, *again;  // one number per sequence: see tw_lengths.h
  int32_t *history;                           // the ids of each sequence, where tokens may have to be read again
  std::atomic<bool> busy;
  tw_team team;
};

extern "C" {

const tw_description *tw_about(void) {
  static const tw_description about = {TW_ABI,      TW_CONTEXT, TW_VOCAB, TW_COLUMNS,  TW_MAX_TOKENS, TW_NPLANS,
                                 TW_NGIVEN, TW_FOLLOWS, TW_BLOCK, TW_NSTATES, TW_WEIGHTS, TW_ARENA, TW_SEQUENCE,   TW_ID, TW_LEVEL, TW_BLOCK_NAMES};
  return &about;
}

const char *tw_error(void) { return tw_message; }

// ---------------------------------------------------------------- weights
// weights.bin begins with 64 bytes: "TILEWGHT", the size of the file (little-endian), 32 characters of the content id.
static int tw_check_weights(const char *path, const char *head, int64_t size) {
  int64_t stated;
  memcpy(&stated, head + 8, 8);
  if (memcmp(head, "TILEWGHT", 8)) return tw_fail(TW_FILE, "%s: not a weights file (wrong first bytes); compile again", path);
  if (stated != size || size != TW_WEIGHTS)
    return tw_fail(TW_FILE, "%s: expected %lld bytes, got %lld (truncated?); compile again", path, (long long)TW_WEIGHTS, (long long)size);
  if (memcmp(head + 16, TW_ID, 32))
    return tw_fail(TW_FILE, "%s: belongs to another compilation (%.32s, the library is %.32s); compile again", path, head + 16, TW_ID);
  return TW_OK;
}

// Pages of a file that was cut short are gone, and touching them ends the process: found out before as much as can be.
static int tw_unchanged(const tw_model *m) {
  struct stat st;
  if (m->fd < 0) return TW_OK;
  if (fstat(m->fd, &st) != 0) return tw_fail(TW_FILE, "%.300s: cannot be read any more", m->path);
  if (st.st_size == m->was.st_size && st.st_mtim.tv_sec == m->was.st_mtim.tv_sec && st.st_mtim.tv_nsec == m->was.st_mtim.tv_nsec) return TW_OK;
  return tw_fail(TW_FILE, "%.300s: was modified after it was opened (%lld bytes, now %lld); load the model again", m->path,
                 (long long)m->was.st_size, (long long)st.st_size);
}

static int tw_map_weights(tw_model *m) {
  const char *const path = m->path;
  const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // not to wait for who would write to a pipe
  struct stat st;
  if (fd < 0 || fstat(fd, &st) != 0) {
    if (fd >= 0) close(fd);
    return tw_fail(TW_FILE, "%s: cannot be read; is the artifact complete?", path);
  }
  char head[64];
  int rc = TW_OK;
  if (!S_ISREG(st.st_mode))
    rc = tw_fail(TW_FILE, "%s: expected a regular file", path);
  else if (pread(fd, head, sizeof head, 0) != (ssize_t)sizeof head)
    rc = tw_fail(TW_FILE, "%s: shorter than its header; compile again", path);
  else
    rc = tw_check_weights(path, head, st.st_size);
  if (rc == TW_OK) {
    void *p = mmap(nullptr, TW_WEIGHTS, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) rc = tw_fail(TW_MEMORY, "%s: %lld bytes cannot be mapped", path, (long long)TW_WEIGHTS);
    else m->weights = (char *)p, madvise(p, TW_WEIGHTS, MADV_HUGEPAGE);  // where the kernel cannot, pages stay small
  }
  if (rc == TW_OK) m->fd = fd, m->was = st;
  else close(fd);
  return rc;
}

int tw_open(const char *dir, tw_model **model) {
  if (!dir || !model) return tw_fail(TW_ARGUMENT, "tw_open: dir or model is NULL");
  *model = nullptr;
  tw_model *m = (tw_model *)calloc(1, sizeof(tw_model));
  if (!m) return tw_fail(TW_MEMORY, "tw_open: out of memory");
  int rc = TW_OK;
  if (snprintf(m->path, sizeof m->path, "%s/weights.bin", dir) >= (int)sizeof m->path) rc = tw_fail(TW_ARGUMENT, "tw_open: path too long");
  if (rc == TW_OK) rc = tw_map_weights(m);
  if (rc != TW_OK) {
    free(m);
    return rc;
  }
  m->users = 1;
  *model = m;
  return TW_OK;
}

int tw_open_memory(const void *weights, int64_t bytes, tw_model **model) {
  if (!weights || !model) return tw_fail(TW_ARGUMENT, "tw_open_memory: weights or model is NULL");
  *model = nullptr;
  if (bytes < 64 || uintptr_t(weights) % 64)
    return tw_fail(TW_ARGUMENT, "tw_open_memory: expected at least 64 bytes at a multiple of 64, got %lld at %p", (long long)bytes, weights);
  const int rc = tw_check_weights("weights in memory", (const char *)weights, bytes);
  if (rc != TW_OK) return rc;
  tw_model *m = (tw_model *)calloc(1, sizeof(tw_model));
  if (!m) return tw_fail(TW_MEMORY, "tw_open_memory: out of memory");
  m->weights = (char *)weights, m->fd = -1, m->users = 1;
  *model = m;
  return TW_OK;
}

void tw_close(tw_model *m) {
  if (!m || m->users.fetch_sub(1) != 1) return;
  if (m->fd >= 0) {
    munmap(m->weights, TW_WEIGHTS);
    close(m->fd);
  }
  free(m);
}

// ---------------------------------------------------------------- sessions
static char *tw_reserve(size_t bytes) {
  void *p = mmap(nullptr, bytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : (char *)p;
}

// For tests, TW_POISON=1: caches, and before each run the arena and the results, hold NaN where nothing has been written.
static bool tw_poison(void) {
  const char *const wish = getenv("TW_POISON");
  return wish && *wish == '1';
}

static bool tw_allocate(tw_session *s) {
  s->arena = tw_reserve(TW_ARENA);
  s->tokens = (int32_t *)aligned_alloc(64, sizeof(int32_t) * TW_OWN_ARRAYS * (TW_STRIDE + 16));
  const size_t each = size_t(s->sequences) + 1;
  s->ranges = s->sequences < (1 << 19) ? 2 * s->sequences : s->sequences;  // twice as many as can be written: see tw_ranges.h
  s->last = (int32_t *)calloc(6 * each + 4 * size_t(s->ranges), sizeof(int32_t));
  bool ok = s->arena && s->tokens && s->last;
  if (ok) s->range_of = s->last + 5 * each, s->refs = s->last + 6 * each, s->shared = s->refs + s->ranges;
  if (ok) s->lost = s->shared + s->ranges, s->filled = s->lost + s->ranges;
  for (int32_t q = 0; ok && q < s->sequences; q++) s->range_of[q] = -1;
  if (ok) s->expected = s->last + each, s->phase = s->last + 2 * each, s->first = s->last + 3 * each, s->again = s->last + 4 * each;
  if (ok && TW_NSWITCHES) ok = (s->history = (int32_t *)tw_reserve(sizeof(int32_t) * TW_CONTEXT * each));
  for (int i = 0; ok && i < TW_NSTREAMS; i++) {
    const tw_stream &t = tw_streams[i];
    ok = t.slot == 0 || int64_t(s->ranges) <= (INT64_MAX >> 2) / t.slot;
    ok = ok && (s->streams[i] = tw_reserve(size_t(t.slot) * s->ranges));
    const bool rows = t.kind == TW_ROWS || t.kind == TW_POSITIONS || t.kind == TW_RECENT;
    if (ok && tw_poison() && rows && int64_t(s->ranges) * t.slot < (1 << 26)) memset(s->streams[i], 0xFF, size_t(t.slot) * s->ranges);
  }
  if (s->arena) madvise(s->arena, TW_ARENA, MADV_HUGEPAGE);
  return ok;
}

void tw_session_free(tw_session *s) {
  if (!s) return;
  tw_dismiss(s->team);
  if (s->arena) munmap(s->arena, TW_ARENA + 4096);
  for (int i = 0; i < TW_NSTREAMS; i++)
    if (s->streams[i]) munmap(s->streams[i], size_t(tw_streams[i].slot) * s->ranges + 4096);
  if (s->history) munmap(s->history, sizeof(int32_t) * TW_CONTEXT * (size_t(s->sequences) + 1) + 4096);
  free(s->tokens);
  free(s->last);
  tw_close(s->model);
  munmap((void *)s, sizeof *s + 4096);
}

int tw_session_new(tw_model *m, int32_t sequences, int32_t threads, tw_session **out) {
  if (!m || !out) return tw_fail(TW_ARGUMENT, "tw_session_new: model or session is NULL");
  *out = nullptr;
  if (sequences < 0 || sequences > (1 << 20))
    return tw_fail(TW_ARGUMENT, "tw_session_new: expected 0 to 1048576 sequences, got %d", sequences);
  if (tw_unchanged(m) != TW_OK) return TW_FILE;
  tw_session *s = (tw_session *)tw_reserve(sizeof(tw_session));  // zeros; much of it is for teams larger than most
  if (!s) return tw_fail(TW_MEMORY, "tw_session_new: out of memory");
  s->model = m;
  s->sequences = sequences;
  m->users++;
  int rc = tw_set_threads(s, threads);
  if (rc == TW_OK && !tw_allocate(s))
    rc = tw_fail(TW_MEMORY, "tw_session_new: %d sequences of %lld bytes cannot be reserved", sequences, (long long)TW_SEQUENCE);
  if (rc != TW_OK) tw_session_free(s);
  else *out = s;
  return rc;
}

int tw_set_threads(tw_session *s, int32_t threads) {
  if (!s || threads < 0 || threads > TW_MAX_THREADS)
    return tw_fail(TW_ARGUMENT, "threads: expected 0 to %d, got %d", TW_MAX_THREADS, threads);
  const int32_t n = threads ? threads : tw_default_threads();
  s->team.threads = n < TW_MAX_THREADS ? n : TW_MAX_THREADS;
  s->team.size = s->team.threads;
  return TW_OK;
}

int32_t tw_threads(const tw_session *s) { return s ? s->team.threads : 0; }

}  // extern "C"
