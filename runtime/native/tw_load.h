/* For programs in C: open the best library of an artifact that this CPU runs. Link with -ldl.
 *
 *   tw_api tw;
 *   if (tw_load("model.tw", &tw)) { fprintf(stderr, "%s\n", tw.problem); return 1; }
 *   tw.open("model.tw", &model); ...
 */
#ifndef TW_LOAD_H
#define TW_LOAD_H

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tilewright.h"

typedef struct tw_api {
  void *library;
  char problem[512];
  const tw_description *(*about)(void);
  const char *(*error)(void);
  int (*open)(const char *, tw_model **);
  void (*close)(tw_model *);
  int (*session_new)(tw_model *, int32_t, int32_t, tw_session **);
  void (*session_free)(tw_session *);
  int (*set_threads)(tw_session *, int32_t);
  int (*step)(tw_session *, int32_t, const int32_t *, const int32_t *, const int32_t *, int32_t, const int32_t *, float *);
  int (*fork)(tw_session *, int32_t, int32_t, int32_t);
  int (*drop)(tw_session *, int32_t);
  int (*expect)(tw_session *, int32_t, int32_t);
  int (*run)(tw_session *, int32_t, const int64_t *, const void *const *, const int64_t *, void *const *, const int64_t *);
} tw_api;

/* Levels that this CPU runs, best first. */
static inline int tw_levels(const char *names[8]) {
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const int vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && __builtin_cpu_supports("avx512bf16")) names[n++] = "avx512_bf16";
  if (vnni) names[n++] = "avx512_vnni";
  if (avx512) names[n++] = "avx512";
  if (avx2) names[n++] = "avx2";
#endif
  names[n++] = "baseline";
  return n;
}

static inline int tw_symbols(tw_api *api) {
  static const char *const names[] = {"tw_about", "tw_error", "tw_open", "tw_close", "tw_session_new", "tw_session_free",
                                      "tw_set_threads", "tw_step", "tw_fork", "tw_drop", "tw_expect",
                                      "tw_run"};
  void **const slots[] = {(void **)&api->about, (void **)&api->error, (void **)&api->open, (void **)&api->close,
                          (void **)&api->session_new, (void **)&api->session_free, (void **)&api->set_threads,
                          (void **)&api->step, (void **)&api->fork, (void **)&api->drop,
                          (void **)&api->expect, (void **)&api->run};
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
    if (!(*slots[i] = dlsym(api->library, names[i]))) return 1;
  return api->about()->abi != TW_ABI;
}

/* A private copy of a plain file, in memory: what is written to the file later does not reach the program. -1: it cannot be made. */
static inline int tw_copy(const char *path) {
  char buffer[1 << 16];
  struct stat st;
  const int from = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  int to = from < 0 || fstat(from, &st) != 0 || !S_ISREG(st.st_mode) ? -1 : (int)syscall(SYS_memfd_create, "tilewright", 1u);
  for (ssize_t n; to >= 0 && (n = read(from, buffer, sizeof buffer)) != 0;)
    if (n < 0 || write(to, buffer, (size_t)n) != n) {
      close(to);
      to = -1;
    }
  if (from >= 0) close(from);
  return to;
}

/* 0, or 1 with the reason in api->problem. The copy stays open: the loader tells libraries apart by their names. */
static inline int tw_load(const char *artifact, tw_api *api) {
  const char *levels[8];
  char path[4096];
  memset(api, 0, sizeof *api);
  const int n = tw_levels(levels);
  for (int i = 0; i < n && !api->library; i++) {
    snprintf(path, sizeof path, "%s/lib/%s.so", artifact, levels[i]);
    if (access(path, R_OK) != 0) continue;
    char name[32];
    const int copy = tw_copy(path);
    if (copy < 0) {
      snprintf(api->problem, sizeof api->problem, "%.300s: cannot be copied to memory; is it a plain file?", path);
      return 1;
    }
    snprintf(name, sizeof name, "/proc/self/fd/%d", copy);
    if (!(api->library = dlopen(name, RTLD_NOW | RTLD_LOCAL))) {
      snprintf(api->problem, sizeof api->problem, "%.400s", dlerror());
      return 1;
    }
  }
  if (!api->library) {
    snprintf(api->problem, sizeof api->problem, "%.300s: no library that this CPU runs (best level here: %s)", artifact, levels[0]);
    return 1;
  }
  if (tw_symbols(api)) {
    snprintf(api->problem, sizeof api->problem, "%.300s: made for another version of the interface; compile it again", path);
    return 1;
  }
  return 0;
}

#endif
