/* A libnvidia-ml.so.1 without a GPU: it returns what a control file says.
 *
 * Only facts of the public interface are in here, the names of functions and the
 * layout of structures; no NVIDIA header is used.
 *
 * The control file is fakenvml.ctl in the folder of the library. It has lines of
 * key=value, is read at each call, and is replaced by renaming:
 *
 *   count=2                    how many GPUs there are
 *   driver=, nvml=             versions; the default is what it was built with
 *   init=18                    what nvmlInit returns
 *   all=9                      what all other functions return
 *   all.VERSION=9              the same, for a library built with that version only
 *   sleep.FUNCTION=500         milliseconds before FUNCTION answers
 *   sleep.G.FUNCTION=500       the same for GPU number G only
 *   G.ret=15                   what all functions return for GPU number G
 *   G.ret.FUNCTION=3           what that function returns
 *   G.KEY=VALUE                a property of GPU number G, see prop() below
 *   G.mN.KEY=VALUE             a property of its MIG instance N, if G.migs > N
 *   xid=SEQ:GPU:CODE[:GI:CI]   an event, delivered once for each new SEQ
 *   xid.wait=15                what a wait for an event returns
 *
 * A property that is not set, and has no natural default, is NOT_SUPPORTED.
 * Built with OLD_DRIVER it lacks the functions that came with R510 to R570.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "580.65.06"
#endif

#define API __attribute__((visibility("default")))

typedef int ret_t;
enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, TIMEOUT = 10, BAD_VERSION = 25,
};

/* ---- the structures of the interface ---- */

typedef struct { uint64_t total, free, used; } memory_t;
typedef struct { uint32_t version; uint64_t total, reserved, free, used; } memory_v2_t;
typedef struct { uint32_t gpu, memory; } utilization_t;
typedef struct { char legacy[16]; uint32_t domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { uint32_t pid; uint64_t used; uint32_t gi, ci; } process_t;
typedef struct { void *device; uint64_t type, data; uint32_t gi, ci; } event_t;
typedef struct { uint32_t sm, copy, dec, enc, jpg, ofa, gi_slices, ci_slices; uint64_t mib; } attributes_t;
typedef struct { uint32_t version, sensor; int32_t degrees; } temperature_t;
typedef struct { uint32_t version; int32_t degrees; } margin_t;
typedef struct { uint32_t id, scope; int64_t at, latency; uint32_t type; int32_t ret; union { uint32_t ui; uint64_t ull; } v; } field_t;
_Static_assert(sizeof(memory_t) == 24 && sizeof(memory_v2_t) == 40 && sizeof(pci_t) == 68, "layout");
_Static_assert(sizeof(process_t) == 24 && sizeof(event_t) == 32 && sizeof(attributes_t) == 40 && sizeof(field_t) == 40, "layout");

enum { MOST_GPUS = 16, MOST_INSTANCES = 7, WHOLE = -1 };
#define NONE 0xFFFFFFFFu

/* A device handle points to one of these. */
typedef struct { int gpu, instance; } device_t;
static device_t devices[MOST_GPUS][1 + MOST_INSTANCES];
static int initialized;

/* ---- the control file ---- */

static __thread char value[512];

static const char *get(const char *key) {
    static char path[4096];
    if (!*path) {
        Dl_info self;
        dladdr(devices, &self);
        char *slash = strrchr(self.dli_fname, '/');
        snprintf(path, sizeof path, "%.*s/fakenvml.ctl", slash ? (int)(slash - self.dli_fname) : 1, slash ? self.dli_fname : ".");
    }
    FILE *f = fopen(path, "re");
    if (!f) return NULL;
    char line[512];
    const char *found = NULL;
    size_t n = strlen(key);
    while (fgets(line, sizeof line, f)) {
        if (!strncmp(line, key, n) && line[n] == '=') {
            strcpy(value, line + n + 1);
            value[strcspn(value, "\r\n")] = 0;
            found = value;
        }
    }
    fclose(f);
    return found;
}

static uint64_t number(const char *key, uint64_t otherwise) {
    const char *v = get(key);
    return v && *v ? strtoull(v, NULL, 0) : otherwise;
}

static const char *prop(device_t *d, const char *key) {
    char k[128];
    if (d->instance == WHOLE) snprintf(k, sizeof k, "%d.%s", d->gpu, key);
    else snprintf(k, sizeof k, "%d.m%d.%s", d->gpu, d->instance, key);
    return get(k);
}

static uint64_t prop_number(device_t *d, const char *key, uint64_t otherwise) {
    const char *v = prop(d, key);
    return v && *v ? strtoull(v, NULL, 0) : otherwise;
}

static void nap(const char *function, device_t *d) {
    char k[128];
    snprintf(k, sizeof k, "sleep.%s", function);
    uint64_t ms = number(k, 0);
    if (d && !ms) {
        snprintf(k, sizeof k, "sleep.%d.%s", d->gpu, function);
        ms = number(k, 0);
    }
    if (ms) usleep((useconds_t)ms * 1000);
}

/* Called first by each function: sleeps, and returns an error if the control file says so. */
static ret_t enter(const char *function, device_t *d) {
    nap(function, d);
    if (!initialized) return UNINITIALIZED;
    ret_t r = (ret_t)number("all", number("all." VERSION, 0));
    if (r || !d) return r;
    char k[128];
    snprintf(k, sizeof k, "%d.ret", d->gpu);
    if ((r = (ret_t)number(k, 0))) return r;
    snprintf(k, sizeof k, "%d.ret.%s", d->gpu, function);
    return (ret_t)number(k, 0);
}
#define ENTER(d) do { ret_t r_ = enter(__func__, d); if (r_) return r_; } while (0)

static ret_t give_text(const char *v, char *out, unsigned size) {
    if (!v) return NOT_SUPPORTED;
    if (strlen(v) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, v);
    return OK;
}

static ret_t give_unsigned(device_t *d, const char *key, unsigned *out) {
    const char *v = prop(d, key);
    if (!v) return NOT_SUPPORTED;
    *out = (unsigned)strtoul(v, NULL, 0);
    return OK;
}

/* ---- the library and the system ---- */

API ret_t nvmlInit_v2(void) {
    nap(__func__, NULL);
    ret_t r = (ret_t)number("init", 0);
    if (r) return r;
    for (int g = 0; g < MOST_GPUS; g++)
        for (int i = 0; i <= MOST_INSTANCES; i++) devices[g][i] = (device_t){g, i - 1};
    initialized++;
    return OK;
}

API ret_t nvmlShutdown(void) {
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return OK;
}

API ret_t nvmlSystemGetDriverVersion(char *out, unsigned size) {
    ENTER(NULL);
    const char *v = get("driver");
    return give_text(v ? v : VERSION, out, size);
}

API ret_t nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    ENTER(NULL);
    const char *v = get("nvml");
    return give_text(v ? v : "13." VERSION, out, size);
}

API ret_t nvmlDeviceGetCount_v2(unsigned *n) {
    ENTER(NULL);
    *n = (unsigned)number("count", 0);
    return OK;
}

API ret_t nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) {
    ENTER(NULL);
    if (i >= number("count", 0) || i >= MOST_GPUS) return INVALID;
    ENTER(&devices[i][0]);
    *d = &devices[i][0];
    return OK;
}

/* ---- the identity of a GPU ---- */

API ret_t nvmlDeviceGetUUID(device_t *d, char *out, unsigned size) { ENTER(d); return give_text(prop(d, "uuid"), out, size); }
API ret_t nvmlDeviceGetName(device_t *d, char *out, unsigned size) { ENTER(d); return give_text(prop(d, "name"), out, size); }
API ret_t nvmlDeviceGetArchitecture(device_t *d, unsigned *out) { ENTER(d); return give_unsigned(d, "arch", out); }
API ret_t nvmlDeviceGetMemoryBusWidth(device_t *d, unsigned *out) { ENTER(d); return give_unsigned(d, "bus_width", out); }

API ret_t nvmlDeviceGetCudaComputeCapability(device_t *d, int *major, int *minor) {
    ENTER(d);
    const char *v = prop(d, "cc");
    return v && sscanf(v, "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}

API ret_t nvmlDeviceGetPciInfo_v3(device_t *d, pci_t *p) {
    ENTER(d);
    memset(p, 0, sizeof *p);
    p->bus = 0x10u + (unsigned)d->gpu;
    snprintf(p->legacy, sizeof p->legacy, "0000:%02X:00.0", p->bus);
    snprintf(p->bus_id, sizeof p->bus_id, "00000000:%02X:00.0", p->bus);
    return OK;
}

enum { CLOCK_GRAPHICS, CLOCK_SM, CLOCK_MEM };
API ret_t nvmlDeviceGetMaxClockInfo(device_t *d, int which, unsigned *mhz) {
    ENTER(d);
    return give_unsigned(d, which == CLOCK_MEM ? "max_mem_clock" : "max_sm_clock", mhz);
}
API ret_t nvmlDeviceGetClockInfo(device_t *d, int which, unsigned *mhz) {
    ENTER(d);
    return give_unsigned(d, which == CLOCK_MEM ? "mem_clock" : "sm_clock", mhz);
}

/* ---- the state of a GPU ---- */

API ret_t nvmlDeviceGetMemoryInfo(device_t *d, memory_t *m) {
    ENTER(d);
    if (!prop(d, "total")) return NOT_SUPPORTED;
    uint64_t total = prop_number(d, "total", 0), used = prop_number(d, "used", 0), reserved = prop_number(d, "reserved", 0);
    *m = (memory_t){total, total - used - reserved, used + reserved}; /* v1 counts reserved memory as used */
    return OK;
}

API ret_t nvmlDeviceGetUtilizationRates(device_t *d, utilization_t *u) {
    ENTER(d);
    if (d->instance != WHOLE || prop_number(d, "mig", 0) || !prop(d, "gpu")) return NOT_SUPPORTED;
    *u = (utilization_t){(uint32_t)prop_number(d, "gpu", 0), (uint32_t)prop_number(d, "mem", 0)};
    return OK;
}

API ret_t nvmlDeviceGetTemperature(device_t *d, int sensor, unsigned *out) { (void)sensor; ENTER(d); return give_unsigned(d, "temp", out); }
API ret_t nvmlDeviceGetPowerUsage(device_t *d, unsigned *out) { ENTER(d); return give_unsigned(d, "power", out); }
API ret_t nvmlDeviceGetEnforcedPowerLimit(device_t *d, unsigned *out) { ENTER(d); return give_unsigned(d, "limit", out); }

static ret_t give_reasons(device_t *d, uint64_t *out) {
    if (!prop(d, "reasons")) return NOT_SUPPORTED;
    *out = prop_number(d, "reasons", 0);
    return OK;
}
API ret_t nvmlDeviceGetCurrentClocksThrottleReasons(device_t *d, uint64_t *out) { ENTER(d); return give_reasons(d, out); }

API ret_t nvmlDeviceGetTotalEccErrors(device_t *d, int uncorrected, int aggregate, uint64_t *out) {
    (void)aggregate;
    ENTER(d);
    const char *key = uncorrected ? "ecc" : "ecc_corrected";
    if (!prop(d, key)) return NOT_SUPPORTED;
    *out = prop_number(d, key, 0);
    return OK;
}

API ret_t nvmlDeviceGetRemappedRows(device_t *d, unsigned *correctable, unsigned *uncorrectable, unsigned *pending, unsigned *failed) {
    ENTER(d);
    const char *v = prop(d, "remap");
    if (!v || sscanf(v, "%u,%u,%u,%u", correctable, uncorrectable, pending, failed) != 4) return NOT_SUPPORTED;
    return prop_number(d, "mig", 0) ? NOT_SUPPORTED : OK;
}

API ret_t nvmlDeviceGetComputeRunningProcesses_v3(device_t *d, unsigned *n, process_t *out) {
    ENTER(d);
    process_t list[32];
    unsigned count = 0;
    char *save, *v = (char *)prop(d, "pids"); /* pid:bytes,... or pid for bytes not available */
    for (char *t = v ? strtok_r(v, ",", &save) : NULL; t && count < 32; t = strtok_r(NULL, ",", &save), count++) {
        char *end;
        memset(&list[count], 0, sizeof *list);
        list[count].pid = (uint32_t)strtoul(t, &end, 10);
        list[count].used = *end == ':' ? strtoull(end + 1, NULL, 0) : ~0ULL;
        list[count].gi = list[count].ci = NONE;
    }
    unsigned room = *n;
    *n = count;
    if (count > room) return INSUFFICIENT_SIZE;
    if (count) memcpy(out, list, count * sizeof *list);
    return OK;
}

#ifndef OLD_DRIVER
API ret_t nvmlDeviceGetMemoryInfo_v2(device_t *d, memory_v2_t *m) {
    ENTER(d);
    if (m->version != (sizeof *m | 2u << 24)) return BAD_VERSION;
    if (!prop(d, "total")) return NOT_SUPPORTED;
    m->total = prop_number(d, "total", 0);
    m->used = prop_number(d, "used", 0);
    m->reserved = prop_number(d, "reserved", 0);
    m->free = m->total - m->used - m->reserved;
    return OK;
}

API ret_t nvmlDeviceGetTemperatureV(device_t *d, temperature_t *t) { ENTER(d); return give_unsigned(d, "temp", (unsigned *)&t->degrees); }
API ret_t nvmlDeviceGetMarginTemperature(device_t *d, margin_t *t) { ENTER(d); return give_unsigned(d, "margin", (unsigned *)&t->degrees); }
API ret_t nvmlDeviceGetCurrentClocksEventReasons(device_t *d, uint64_t *out) { ENTER(d); return give_reasons(d, out); }

API ret_t nvmlDeviceGetFieldValues(device_t *d, int n, field_t *f) {
    ENTER(d);
    for (int i = 0; i < n; i++) {
        char k[32];
        snprintf(k, sizeof k, "field%u", f[i].id);
        const char *v = prop(d, k);
        f[i].ret = v ? OK : NOT_SUPPORTED;
        f[i].type = 1; /* unsigned int */
        f[i].v.ui = v ? (uint32_t)strtoul(v, NULL, 0) : 0;
    }
    return OK;
}
#endif

/* ---- MIG ---- */

API ret_t nvmlDeviceGetMigMode(device_t *d, unsigned *now, unsigned *pending) {
    ENTER(d);
    ret_t r = give_unsigned(d, "mig", now);
    *pending = *now;
    return r;
}

API ret_t nvmlDeviceGetMaxMigDeviceCount(device_t *d, unsigned *n) { ENTER(d); *n = MOST_INSTANCES; return OK; }

API ret_t nvmlDeviceGetMigDeviceHandleByIndex(device_t *d, unsigned i, void **out) {
    ENTER(d);
    if (i >= MOST_INSTANCES || i >= prop_number(d, "migs", 0)) return NOT_FOUND;
    *out = &devices[d->gpu][1 + i];
    return OK;
}

API ret_t nvmlDeviceGetGpuInstanceId(device_t *d, unsigned *out) { ENTER(d); return d->instance == WHOLE ? INVALID : give_unsigned(d, "gi", out); }
API ret_t nvmlDeviceGetComputeInstanceId(device_t *d, unsigned *out) { ENTER(d); return d->instance == WHOLE ? INVALID : give_unsigned(d, "ci", out); }

API ret_t nvmlDeviceGetAttributes_v2(device_t *d, attributes_t *a) {
    ENTER(d);
    if (d->instance == WHOLE) return NOT_SUPPORTED;
    memset(a, 0, sizeof *a);
    a->mib = prop_number(d, "mib", 0);
    a->gi_slices = a->ci_slices = (uint32_t)prop_number(d, "slices", 1);
    return OK;
}

/* ---- events ---- */

enum { XID_EVENT = 8 };
typedef struct { uint64_t seen; unsigned mask[MOST_GPUS]; } event_set_t;

static uint64_t last_xid(unsigned *gpu, event_t *e) {
    unsigned long long seq = 0, code = 0;
    e->gi = e->ci = NONE;
    const char *v = get("xid");
    if (!v || sscanf(v, "%llu:%u:%llu:%u:%u", &seq, gpu, &code, &e->gi, &e->ci) < 3 || *gpu >= MOST_GPUS) return 0;
    e->device = &devices[*gpu][0];
    e->type = XID_EVENT;
    e->data = code;
    return seq;
}

API ret_t nvmlEventSetCreate(event_set_t **s) {
    ENTER(NULL);
    unsigned gpu;
    event_t e;
    *s = calloc(1, sizeof **s);
    (*s)->seen = last_xid(&gpu, &e); /* earlier events are lost */
    return OK;
}

API ret_t nvmlEventSetFree(event_set_t *s) { free(s); return OK; }
API ret_t nvmlDeviceGetSupportedEventTypes(device_t *d, uint64_t *out) { ENTER(d); *out = prop_number(d, "events", 0xf); return OK; }
API ret_t nvmlDeviceRegisterEvents(device_t *d, uint64_t types, event_set_t *s) { ENTER(d); s->mask[d->gpu] |= (unsigned)types; return OK; }

API ret_t nvmlEventSetWait_v2(event_set_t *s, event_t *e, unsigned ms) {
    struct timespec began, now;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (;;) {
        ret_t r = (ret_t)number("xid.wait", number("all", number("all." VERSION, 0)));
        if (r) return r;
        unsigned gpu = 0;
        uint64_t seq = last_xid(&gpu, e);
        if (seq > s->seen) {
            s->seen = seq;
            if (s->mask[gpu] & XID_EVENT) return OK;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000 >= (long)ms) return TIMEOUT;
        usleep(5000);
    }
}
