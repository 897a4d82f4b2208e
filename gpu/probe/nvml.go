//go:build linux && cgo

package probe

import (
	"slices"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/pulley-lb/pulley/gpu"
)

// library is NVML, loaded and initialised. Calling a function that it lacks ends the process, so all calls go through
// ask, which checks first. Text for a value that NVML returned comes from [returned]: NVML's own function for that may
// be missing too, and nvml.Return calls it whenever it is printed.
type library struct {
	nvml.Interface

	mu  sync.Mutex
	has map[string]bool
}

// openLibrary loads and initialises NVML: the library at path, or if path is empty the one that the loader finds,
// otherwise the first in other known places. It may take seconds per GPU, or hang with the driver.
//
// NVML is never shut down: the end of the process does that, and Shutdown after a library that was
// not found is one more way to crash.
func openLibrary(path string, h host) (*library, *gpu.Failure) {
	candidates := []string{path}
	if path == "" {
		candidates = append(candidates, h.libraries()...)
	}
	for _, name := range candidates {
		var options []nvml.LibraryOption
		if name != "" {
			options = append(options, nvml.WithLibraryPath(name))
		}
		lib := &library{Interface: nvml.New(options...), has: make(map[string]bool)}
		ret := lib.Init()
		switch {
		case ret == nvml.SUCCESS:
			return lib, nil
		case ret != nvml.ERROR_LIBRARY_NOT_FOUND: // a second library in the process would not be used: calls go to the first
			return nil, failureToInit(int(ret), h)
		}
	}
	f := failureToInit(retNoLibrary, h)
	if path != "" {
		f.Kind, f.Detail = gpu.NoLibrary, path+": "+gpu.NoSuchLibrary
	}
	return nil, f
}

// lacks reports whether the library has none of the names of a function. Later versions of a
// function have names of their own, of which the binding takes the latest.
func (l *library) lacks(names []string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.ContainsFunc(names, func(name string) bool {
		has, known := l.has[name]
		if !known {
			has = l.Extensions().LookupSymbol(name) == nil
			l.has[name] = has
		}
		return has
	})
}

// text asks for a version.
func (l *library) text(name string, call func() (string, nvml.Return)) string {
	if l.lacks([]string{name}) {
		return ""
	}
	text, ret := call()
	if ret != nvml.SUCCESS {
		return ""
	}
	return text
}

// askAgain is how long a device is not asked again for what it did not support.
const askAgain = 10 * time.Minute

// asker asks one device. It belongs to the goroutine of its GPU.
type asker struct {
	lib     *library
	dev     nvml.Device
	refused map[string]refusal // by what was asked for, and function
	lost    string             // why the device is lost, or ""
	gone    int                // what NVML returned when it stopped working altogether, or 0
	trouble bool               // a call failed that should have worked
}

type refusal struct {
	ret   int
	until time.Time
}

func newAsker(lib *library, dev nvml.Device) *asker {
	return &asker{lib: lib, dev: dev, refused: make(map[string]refusal)}
}

// ask calls the function with these names, unless the library lacks it or the device has refused it
// recently. It returns what NVML returned, 0 for success.
func (a *asker) ask(call func() nvml.Return, names ...string) int {
	return a.askFor("", call, names...)
}

// askFor is ask for one of several values that a function provides.
func (a *asker) askFor(what string, call func() nvml.Return, names ...string) int {
	if a.lost != "" || a.gone != 0 {
		return retLost
	}
	now := time.Now()
	if r, ok := a.refused[what+names[0]]; ok && now.Before(r.until) {
		return r.ret
	}
	ret := retNotInLibrary
	if !a.lib.lacks(names) {
		ret = int(call())
	}
	switch ret {
	case 0:
	case retNotInLibrary, retNotSupported, retNoPermission, retNoFunction, retVersion, retInvalid:
		a.refused[what+names[0]] = refusal{ret, now.Add(askAgain)}
		a.trouble = a.trouble || ret == retInvalid // the handle may have become invalid
	case retNotFound: // a valid answer in some calls
	case retLost:
		a.lost = "is lost"
	case retResetRequired:
		a.lost = gpu.ResetRequired
	case retUninitialized, retNotLoaded, retMismatch:
		a.gone = ret
	default:
		a.trouble = true
	}
	return ret
}

// value asks for a value; nil if the device does not provide it.
func value[T any](a *asker, call func() (T, nvml.Return), names ...string) *T {
	return valueOf(a, "", call, names...)
}

// valueOf is value for one of several values that a function provides.
func valueOf[T any](a *asker, what string, call func() (T, nvml.Return), names ...string) *T {
	var v T
	ret := a.askFor(what, func() (ret nvml.Return) {
		v, ret = call()
		return ret
	}, names...)
	if ret != 0 {
		return nil
	}
	return &v
}

// as converts a pointer to a number of another type.
func as[T, F int | int32 | uint32 | uint64](v *F) *T {
	if v == nil {
		return nil
	}
	return new(T(*v))
}
