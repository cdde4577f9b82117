/* A libnvidia-ml.so.1 for tests. What it says stands in the file named by FAKE_NVML, read anew at every call:
 * lines of "key value", as in "count 2", "gpu0.total 25769803776", "init 9", "memory hang", "memory crash". */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_v1;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } process;

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

static int text(const char *key, char *value, size_t size) {
    char line[256];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t length = strlen(key);
    int found = 0;
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file))
        if (!strncmp(line, key, length) && line[length] == ' ') {
            line[strcspn(line, "\n")] = 0;
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    fclose(file);
    return found;
}

static u64 number(const char *key, u64 otherwise) {
    char value[64];
    return text(key, value, sizeof value) ? strtoull(value, NULL, 10) : otherwise;
}

static const char *named(const char *device, const char *what) {
    static char key[96];
    snprintf(key, sizeof key, "%s.%s", device, what);
    return key;
}

/* What a call is told to do: return a code, never return, or take the process with it. */
static int act(const char *key) {
    char value[64];
    if (!text(key, value, sizeof value)) return SUCCESS;
    if (!strcmp(value, "crash")) raise(SIGSEGV);
    if (!strcmp(value, "hang")) for (;;) pause();
    return atoi(value);
}

static char devices[64][16];

static int handle_of(const char *name, void **handle) {
    int slot;
    for (slot = 0; slot < 63 && devices[slot][0] && strcmp(devices[slot], name); slot++);
    snprintf(devices[slot], sizeof devices[slot], "%s", name);
    *handle = devices[slot];
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; puts("the library talks"); fflush(stdout); return act("init"); }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    static char said[32];
    snprintf(said, sizeof said, "error %d", code);
    return said;
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)number("count", 1); return act("get_count"); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    char name[16];
    int code;
    snprintf(name, sizeof name, "gpu%u", index);
    code = act(named(name, "handle"));
    return code ? code : handle_of(name, handle);
}

int nvmlDeviceGetMigMode(const char *device, unsigned *current, unsigned *pending) {
    u64 slots = number(named(device, "slots"), 0);
    if (!slots && number(named(device, "mig"), 2) == 2) return NOT_SUPPORTED;
    *current = *pending = slots > 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(const char *device, unsigned *count) {
    *count = (unsigned)number(named(device, "slots"), 0);
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(const char *device, unsigned slot, void **handle) {
    char name[16];
    snprintf(name, sizeof name, "%s-%u", device, slot);
    if (!number(named(name, "total"), 0)) return NOT_FOUND;
    return handle_of(name, handle);
}

int nvmlDeviceGetMemoryInfo(const char *device, memory_v1 *memory) {
    memory->total = number(named(device, "total"), 0);
    memory->free = number(named(device, "free"), 0);
    memory->used = memory->total - memory->free;
    return act("memory_v1");
}

int nvmlDeviceGetMemoryInfo_v2(const char *device, memory_v2 *memory) {
    int code = act("memory");
    if (!code) code = act(named(device, "memory"));
    memory->total = number(named(device, "total"), 0);
    memory->free = number(named(device, "free"), 0);
    memory->reserved = 256ULL << 20;
    memory->used = memory->total - memory->free - memory->reserved;
    return code;
}

int nvmlDeviceGetUUID(const char *device, char *value, unsigned size) {
    snprintf(value, size, "GPU-%s-of-the-tests", device);
    return act(named(device, "uuid"));
}

int nvmlDeviceGetName(const char *device, char *value, unsigned size) {
    if (!text(named(device, "name"), value, size)) snprintf(value, size, "NVIDIA Fake");
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(const char *device, unsigned *count, process *processes) {
    u64 pid = number(named(device, "pid"), 0);
    if (!pid) { *count = 0; return SUCCESS; }
    if (*count < 1 || !processes) { *count = 1; return INSUFFICIENT_SIZE; }
    *count = 1;
    memset(processes, 0, sizeof *processes);
    processes[0].pid = (unsigned)pid;
    processes[0].used = number(named(device, "pid_used"), 0);
    return SUCCESS;
}
