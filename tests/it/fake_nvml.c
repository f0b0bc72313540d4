/* A libnvidia-ml.so.1 for tests: one board that draws 300 W, on a clock that the test moves.
 *
 * Built with -DCONTROL="FILE". The file holds lines `name value`; each call reads it again. Names: ms (the
 * time), lost, counter (0: none), instant (0: none), cap_ignored, denied, mig, xid, others (beside this
 * process), xid_board (which reports it), reasons, boards, free (percent of the memory), ecc, uncorrected, pending, lanes, persistence. Only what the program calls is here; numbers are those of nvml.h. */
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, TIMEOUT = 10, GPU_LOST = 15 };
typedef unsigned int u32;
typedef unsigned long long u64;

static u32 limit = 700000, second;

static long control(const char *name, long otherwise) {
  FILE *file = fopen(CONTROL, "r");
  char key[64];
  long value;
  if (!file) return otherwise;
  while (fscanf(file, "%63s %ld", key, &value) == 2)
    if (strcmp(key, name) == 0) otherwise = value;
  fclose(file);
  return otherwise;
}
static int gone(void) { return control("lost", 0) ? GPU_LOST : OK; }

int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(u32 *count) { *count = (u32)control("boards", 1); return OK; }
int nvmlSystemGetDriverVersion(char *out, u32 n) { snprintf(out, n, "580.95.05"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13000; return OK; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **device) {
  if (index >= (u32)control("boards", 1)) return INVALID;
  *device = index ? (void *)&second : (void *)&limit;
  return gone();
}
int nvmlDeviceGetName(void *d, char *out, u32 n) { (void)d; snprintf(out, n, "NVIDIA Fake H200"); return gone(); }
int nvmlDeviceGetUUID(void *d, char *out, u32 n) { snprintf(out, n, d == &second ? "GPU-second" : "GPU-fake"); return gone(); }

/* The counter moves every 100 ms. */
int nvmlDeviceGetTotalEnergyConsumption(void *d, u64 *mj) {
  (void)d;
  if (!control("counter", 1)) return NOT_SUPPORTED;
  *mj = (u64)(control("ms", 0) / 100) * 100 * 300;
  return gone();
}
int nvmlDeviceGetPowerUsage(void *d, u32 *mw) { (void)d; *mw = 250000; return gone(); }

struct field {
  u32 id, scope;
  long long timestamp, latency;
  int type, result;
  union { double d; u32 u; u64 l; } value;
};
int nvmlDeviceGetFieldValues(void *d, int count, struct field *fields) {
  (void)d;
  for (int i = 0; i < count; i++) {
    fields[i].type = 1; /* unsigned int */
    fields[i].result = fields[i].id == 186 && control("instant", 1) ? OK : NOT_SUPPORTED;
    fields[i].value.u = 300000;
  }
  return gone();
}

int nvmlDeviceGetTemperature(void *d, int sensor, u32 *out) { (void)d; (void)sensor; *out = 61; return gone(); }
int nvmlDeviceGetClockInfo(void *d, int kind, u32 *out) { (void)d; *out = kind == 1 ? 1755 : 3201; return gone(); }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, u64 *out) {
  (void)d;
  *out = (u64)control("reasons", 1);
  return gone();
}
int nvmlDeviceGetMigMode(void *d, u32 *current, u32 *pending) {
  (void)d;
  *current = *pending = (u32)control("mig", 0);
  return gone();
}

int nvmlDeviceGetEnforcedPowerLimit(void *d, u32 *out) { (void)d; *out = limit; return gone(); }
int nvmlDeviceGetPowerManagementLimit(void *d, u32 *out) { (void)d; *out = limit; return gone(); }
int nvmlDeviceGetPowerManagementDefaultLimit(void *d, u32 *out) { (void)d; *out = 700000; return gone(); }
int nvmlDeviceGetPowerManagementLimitConstraints(void *d, u32 *least, u32 *most) {
  (void)d;
  *least = 200000;
  *most = 700000;
  return gone();
}
int nvmlDeviceSetPowerManagementLimit(void *d, u32 mw) {
  (void)d;
  if (control("denied", 0)) return NO_PERMISSION;
  if (!control("cap_ignored", 0)) limit = mw;
  return gone();
}

struct memory { u32 version; u64 total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(void *d, struct memory *m) {
  (void)d;
  m->total = 150754820096ull;
  m->free = m->total / 100 * (u64)control("free", 99);
  return gone();
}

struct process { u32 pid; u64 memory; u32 gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, u32 *count, struct process *out) {
  (void)d;
  u32 all = 1 + (u32)control("others", 0);
  if (*count < all || !out) { *count = all; return 7; }
  for (u32 i = 0; i < all; i++) { memset(&out[i], 0, sizeof out[i]); out[i].pid = i ? 4000000 + i : (u32)getpid(); }
  *count = all;
  return gone();
}

struct event { void *device; u64 type, data; u32 gpu_instance, compute_instance; };
struct set { void *device; long told; };
int nvmlEventSetCreate(void **set) { return (*set = calloc(1, sizeof(struct set))) ? OK : NOT_SUPPORTED; }
int nvmlEventSetFree(void *set) { free(set); return OK; }
int nvmlDeviceRegisterEvents(void *d, u64 types, void *set) { (void)types; ((struct set *)set)->device = d; return OK; }
int nvmlEventSetWait_v2(void *events, struct event *out, u32 timeout) {
  (void)timeout;
  struct set *set = events;
  void *faulty = control("xid_board", 0) ? (void *)&second : (void *)&limit;
  long xid = set->device == faulty ? control("xid", 0) : 0;
  if (xid == set->told) return TIMEOUT;
  set->told = xid;
  memset(out, 0, sizeof *out);
  out->device = set->device;
  out->type = 8; /* critical Xid */
  out->data = (u64)xid;
  return OK;
}

int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) { (void)d; *major = 9; *minor = 0; return gone(); }
int nvmlDeviceGetEccMode(void *d, int *now, int *next) { (void)d; *now = *next = (int)control("ecc", 1); return gone(); }
int nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, u64 *out) {
  (void)d;
  *out = kind == 1 ? (u64)control("uncorrected", 0) + (counter == 1 ? 1u : 0u) * (control("uncorrected", 0) > 0) : 7;
  return gone();
}
int nvmlDeviceGetRetiredPagesPendingStatus(void *d, int *out) { (void)d; *out = (int)control("pending", 0); return gone(); }
int nvmlDeviceGetCurrPcieLinkGeneration(void *d, u32 *out) { (void)d; *out = 1; return gone(); }
int nvmlDeviceGetMaxPcieLinkGeneration(void *d, u32 *out) { (void)d; *out = 5; return gone(); }
int nvmlDeviceGetCurrPcieLinkWidth(void *d, u32 *out) { (void)d; *out = (u32)control("lanes", 16); return gone(); }
int nvmlDeviceGetMaxPcieLinkWidth(void *d, u32 *out) { (void)d; *out = 16; return gone(); }
int nvmlDeviceGetPersistenceMode(void *d, int *out) { (void)d; *out = (int)control("persistence", 1); return gone(); }
