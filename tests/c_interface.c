/* Runs one picture through a SavedModel by TensorFlow's C interface, as a program without Python would:
   c_interface MODEL NOISY_TENSOR LEVEL_TENSOR OUTPUT_TENSOR HEIGHT WIDTH LEVEL NOISY_FILE ANSWER_FILE OTHER_LEVEL
   Files hold float32 [1, HEIGHT, WIDTH, 3]. When the answer is written, asks once more with the other level. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

static void stop_if_not_ok(TF_Status *status) {
  if (TF_GetCode(status) != TF_OK) {
    fprintf(stderr, "%s\n", TF_Message(status));
    exit(1);
  }
}

/* "name:0" -> the output 0 of the operation "name" */
static TF_Output find(TF_Graph *graph, char *name) {
  char *colon = strchr(name, ':');
  TF_Output output;
  *colon = 0;
  output.oper = TF_GraphOperationByName(graph, name);
  output.index = atoi(colon + 1);
  if (!output.oper) {
    fprintf(stderr, "no operation %s\n", name);
    exit(1);
  }
  return output;
}

int main(int argc, char **argv) {
  if (argc != 11) return 2;
  const char *tags[] = {"serve"};
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  stop_if_not_ok(status);

  int64_t shape[] = {1, atoi(argv[5]), atoi(argv[6]), 3}, one[] = {1};
  size_t bytes = sizeof(float) * shape[1] * shape[2] * 3;
  TF_Tensor *values[] = {TF_AllocateTensor(TF_FLOAT, shape, 4, bytes), TF_AllocateTensor(TF_FLOAT, one, 1, sizeof(float))};
  FILE *file = fopen(argv[8], "rb");
  if (!file || fread(TF_TensorData(values[0]), 1, bytes, file) != bytes) return 2;
  fclose(file);
  *(float *)TF_TensorData(values[1]) = (float)atof(argv[7]);

  TF_Output inputs[] = {find(graph, argv[2]), find(graph, argv[3])}, output = find(graph, argv[4]);
  TF_Tensor *answer = NULL;
  TF_SessionRun(session, NULL, inputs, values, 2, &output, &answer, 1, NULL, 0, NULL, status);
  stop_if_not_ok(status);
  file = fopen(argv[9], "wb");
  if (!file || fwrite(TF_TensorData(answer), 1, TF_TensorByteSize(answer), file) != bytes) return 2;
  fclose(file);

  *(float *)TF_TensorData(values[1]) = (float)atof(argv[10]);
  TF_SessionRun(session, NULL, inputs, values, 2, &output, &answer, 1, NULL, 0, NULL, status);
  stop_if_not_ok(status);
  return 0;
}
