/* Runs one picture through a SavedModel by TensorFlow's C interface, as a program without Python would:
   c_interface MODEL NOISY_TENSOR OUTPUT_TENSOR HEIGHT WIDTH NOISY_FILE ANSWER_FILE [LEVEL_TENSOR LEVEL OTHER_LEVEL]
   Files hold float32, the noisy one [1, HEIGHT, WIDTH, 3]. With a level, when the answer is written, asks once more
   with the other level. */
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
  if (argc != 8 && argc != 11) return 2;
  int inputs_given = argc == 11 ? 2 : 1;
  const char *tags[] = {"serve"};
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  stop_if_not_ok(status);

  int64_t shape[] = {1, atoi(argv[4]), atoi(argv[5]), 3}, one[] = {1};
  size_t bytes = sizeof(float) * shape[1] * shape[2] * 3;
  TF_Tensor *values[] = {TF_AllocateTensor(TF_FLOAT, shape, 4, bytes), TF_AllocateTensor(TF_FLOAT, one, 1, sizeof(float))};
  float *level = TF_TensorData(values[1]);
  FILE *file = fopen(argv[6], "rb");
  if (!file || fread(TF_TensorData(values[0]), 1, bytes, file) != bytes) return 2;
  fclose(file);

  TF_Output inputs[2] = {find(graph, argv[2])}, output = find(graph, argv[3]);
  if (inputs_given == 2) {
    inputs[1] = find(graph, argv[8]);
    *level = (float)atof(argv[9]);
  }
  TF_Tensor *answer = NULL;
  TF_SessionRun(session, NULL, inputs, values, inputs_given, &output, &answer, 1, NULL, 0, NULL, status);
  stop_if_not_ok(status);
  file = fopen(argv[7], "wb");
  if (!file || fwrite(TF_TensorData(answer), TF_TensorByteSize(answer), 1, file) != 1) return 2;
  fclose(file);

  if (inputs_given == 2) {
    *level = (float)atof(argv[10]);
    TF_SessionRun(session, NULL, inputs, values, inputs_given, &output, &answer, 1, NULL, 0, NULL, status);
    stop_if_not_ok(status);
  }
  return 0;
}
