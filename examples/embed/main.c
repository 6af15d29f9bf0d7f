/* Opens a compiled model, steps it, and prints token ids: ./embed model.tw COUNT ID [ID ...]
 * No JSON, no tokenizer, no Python: ids in, ids out, the likeliest token each time. */
#include <stdlib.h>

#include "tw_load.h"

static int32_t likeliest(const float *logits, int32_t n) {
  int32_t best = 0;
  for (int32_t i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  return best;
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s model.tw COUNT ID [ID ...]\n", argv[0]);
    return 2;
  }
  tw_api tw;
  if (tw_load(argv[1], &tw)) {
    fprintf(stderr, "%s\n", tw.problem);
    return 1;
  }
  tw_model *model = NULL;
  tw_session *session = NULL;
  if (tw.open(argv[1], &model) || tw.session_new(model, 1, 0, &session)) {
    fprintf(stderr, "%s\n", tw.error());
    return 1;
  }
  const tw_description *about = tw.about();
  float *logits = malloc(sizeof(float) * (size_t)about->columns);
  const int32_t slot = 0, row = 0;
  int32_t at = 0, id = 0;
  int failed = !logits;

  for (int i = 3; i < argc && !failed; i++, at++) { /* the prompt; only its last token asks for logits */
    id = atoi(argv[i]);
    failed = tw.step(session, 1, &id, &at, &slot, i + 1 == argc, &row, logits);
  }
  for (int n = atoi(argv[2]); n > 0 && !failed; n--, at++) {
    id = likeliest(logits, about->columns);
    printf("%d%s", id, n > 1 ? " " : "\n");
    if (n > 1) failed = tw.step(session, 1, &id, &at, &slot, 1, &row, logits);
  }
  if (failed) fprintf(stderr, "%s\n", tw.error());
  free(logits);
  tw.session_free(session);
  tw.close(model);
  return failed ? 1 : 0;
}
