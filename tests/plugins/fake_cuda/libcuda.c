/* A stand-in for NVIDIA's driver: host memory is device memory, and a launch calls back whoever tests. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_BINARY = 209, NOT_FOUND = 500 };
enum { MAJOR = 75, MINOR = 76, MAX_DYNAMIC_SHARED = 8 };
enum { COMMON_SHARED = 48 * 1024 };

typedef struct { const unsigned char* image; } Module;
typedef struct { Module* module; char name[64]; unsigned shared; } Function;
typedef int (*Callback)(const char* name, const unsigned char* image, const unsigned* grid, const unsigned* block,
                        unsigned shared, void* stream, void** parameters);

static int capability = 80, failing_code;
static uint64_t context = 1;
static _Atomic unsigned loads, fills; /* launches come from many threads */
static char failing[32];
static Callback callback;

void fake_gpu(int of_capability) { capability = of_capability, ++context; }
void fake_no_context(void) { context = 0; }
void fake_failure(const char* call, int code) { strncpy(failing, call, sizeof failing - 1), failing_code = code; }
void fake_callback(Callback of_launches) { callback = of_launches; }
unsigned fake_loads(void) { return loads; }
unsigned fake_fills(void) { return fills; }

#define FAIL_IF_ASKED(call) \
  if (strcmp(failing, call) == 0) return failing_code

int cuCtxGetCurrent(void** current) {
  *current = (void*)(uintptr_t)context;
  return SUCCESS;
}
int cuCtxGetId(void* of, unsigned long long* id) {
  *id = (uintptr_t)of;
  return of == NULL ? INVALID_VALUE : SUCCESS;
}
int cuCtxGetDevice(int* device) {
  *device = 0;
  return context == 0 ? 201 : SUCCESS;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  *value = attribute == MAJOR ? capability / 10 : attribute == MINOR ? capability % 10 : -1;
  return SUCCESS;
}
int cuModuleLoadDataEx(Module** module, const void* image, unsigned options, int* keys, void** values) {
  (void)options, (void)keys;
  FAIL_IF_ASKED("cuModuleLoadDataEx");
  const unsigned char* bytes = image;
  if (memcmp(bytes, "\177ELF", 4) != 0 && strstr(image, ".version") == NULL) {
    strcpy(values[0], "neither a cubin nor PTX");
    return NO_BINARY;
  }
  *module = malloc(sizeof **module);
  (*module)->image = bytes;
  ++loads;
  return SUCCESS;
}
int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  FAIL_IF_ASKED("cuModuleGetFunction");
  *function = calloc(1, sizeof **function);
  (*function)->module = module;
  (*function)->shared = COMMON_SHARED;
  strncpy((*function)->name, name, sizeof(*function)->name - 1);
  return SUCCESS;
}
int cuFuncSetAttribute(Function* function, int attribute, int value) {
  FAIL_IF_ASKED("cuFuncSetAttribute");
  if (attribute == MAX_DYNAMIC_SHARED) function->shared = (unsigned)value;
  return SUCCESS;
}
int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
  FAIL_IF_ASKED("cuLaunchKernel");
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  if (gx == 0 || gy == 0 || gz == 0 || gx > 0x7fffffff || shared > function->shared || extra != NULL)
    return INVALID_VALUE;
  return callback(function->name, function->module->image, grid, block, shared, stream, parameters);
}
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void* stream) {
  (void)stream;
  FAIL_IF_ASKED("cuMemsetD8Async");
  memset((void*)(uintptr_t)address, value, bytes);
  ++fills;
  return SUCCESS;
}
int cuGetErrorString(int code, const char** text) {
  *text = code == INVALID_VALUE ? "invalid argument" : code == NO_BINARY ? "no kernel image" : "some error";
  return SUCCESS;
}
