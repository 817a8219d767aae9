/* NVIDIA's driver as far as mega-deploy calls it, with host memory for a GPU's. The environment says what is there:
   FAKE_GPUS (default 1), FAKE_CAPABILITY (8.9), FAKE_INIT (an error of cuInit), FAKE_MEMORY (bytes of the GPU). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t allocated = 0, blocks = 0;

static long number(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text ? atol(text) : otherwise;
}

/* For the tests. A graph is the number of its capture; launching it is left to whoever asked to be told. */
static int capturing = 0, captures = 0, graphs = 0;
static int (*launched)(int graph, uintptr_t stream) = NULL;
size_t fake_blocks(void) { return blocks; }
int fake_capturing(void) { return capturing; }
int fake_graphs(void) { return graphs; }
void fake_on_launch(int (*callback)(int, uintptr_t)) { launched = callback; }

int cuStreamBeginCapture_v2(void* stream, int mode) {
  capturing = stream && mode == 1 ? ++captures : 0;
  return capturing ? 0 : 400;
}

int cuStreamEndCapture(void* stream, void** graph) {
  *graph = (void*)(intptr_t)capturing;
  capturing = 0;
  return stream && !number("FAKE_NO_CAPTURE", 0) ? 0 : 901;
}

int cuGraphInstantiateWithFlags(void** ready, void* graph, uint64_t flags) {
  *ready = graph;
  ++graphs;
  return (int)flags;
}

int cuGraphDestroy(void* graph) { return graph ? 0 : 400; }

int cuGraphLaunch(void* graph, void* stream) { return launched((int)(intptr_t)graph, (uintptr_t)stream); }

int cuGraphExecDestroy(void* graph) {
  --graphs;
  return graph ? 0 : 400;
}

int cuInit(unsigned flags) { return flags ? 1 : (int)number("FAKE_INIT", 0); }

int cuGetErrorString(int code, const char** text) {
  *text = code == 100 ? "no CUDA-capable device is detected" : NULL;
  return *text ? 0 : 1;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

int cuDeviceGetCount(int* count) {
  *count = (int)number("FAKE_GPUS", 1);
  return 0;
}

int cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}

int cuDeviceGetName(char* name, int size, int device) {
  snprintf(name, (size_t)size, "Fake GPU %d", device);
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  int major = 8, minor = 9;
  const char* text = getenv("FAKE_CAPABILITY");
  if (text) sscanf(text, "%d.%d", &major, &minor);
  *value = attribute == 75 ? major : minor;
  return attribute == 75 || attribute == 76 ? 0 : 1 + device;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(intptr_t)(device + 1);
  return 0;
}

int cuCtxSetCurrent(void* context) { return context ? 0 : 201; }

int cuStreamCreate(void** stream, unsigned flags) {
  *stream = (void*)(intptr_t)7;
  return (int)flags;
}

int cuStreamSynchronize(void* stream) { return stream ? 0 : 400; }

/* A clock that goes on by a millisecond with every mark. */
static int marks = 0;

int cuEventCreate(void** event, unsigned flags) {
  *event = calloc(1, sizeof(int));
  return (int)flags;
}

int cuEventRecord(void* event, void* stream) {
  *(int*)event = ++marks;
  return stream ? 0 : 400;
}

int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  *milliseconds = (float)(*(int*)end - *(int*)start);
  return 0;
}

int cuDeviceGetPCIBusId(char* text, int size, int device) {
  snprintf(text, (size_t)size, "0000:%02x:00.0", device + 1);
  return 0;
}

int cuStreamDestroy_v2(void* stream) { return stream ? 0 : 400; }

int cuMemAlloc_v2(uint64_t* address, size_t size) {
  if (allocated + size > (size_t)number("FAKE_MEMORY", 1L << 30)) return 2;
  allocated += size;
  ++blocks;
  *address = (uint64_t)(uintptr_t)malloc(size);
  return 0;
}

int cuMemFree_v2(uint64_t address) {
  free((void*)(uintptr_t)address);
  --blocks;
  return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t target, const void* source, size_t size, void* stream) {
  memcpy((void*)(uintptr_t)target, source, size);
  return stream ? 0 : 400;
}

int cuMemcpyDtoHAsync_v2(void* target, uint64_t source, size_t size, void* stream) {
  memcpy(target, (const void*)(uintptr_t)source, size);
  return stream ? 0 : 400;
}

int cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t size, void* stream) {
  memcpy((void*)(uintptr_t)target, (const void*)(uintptr_t)source, size);
  return stream ? 0 : 400;
}

/* By which cuda-bindings finds all others: under their plain names, the newest of each. */
int cuGetProcAddress_v2(const char* symbol, void** function, int version, uint64_t flags, int* status) {
  static const char* const endings[] = {"_v2", "WithFlags", ""};
  char name[128];
  Dl_info self;
  void* library = dladdr((void*)cuGetProcAddress_v2, &self) ? dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : NULL;
  *function = NULL;
  for (size_t i = 0; library && !*function && i < sizeof endings / sizeof *endings; ++i) {
    snprintf(name, sizeof name, "%s%s", symbol, endings[i]);
    *function = dlsym(library, name);
  }
  if (status) *status = *function == NULL;
  return *function && version && !flags ? 0 : 500;
}
