//go:build linux && cgo

package probe

import (
	"slices"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/pulley-lb/pulley/gpu"
)

// library is NVML, loaded and initialised. Calling a function that it lacks ends
// the process, so all calls go through ask, which looks first. Text for a value
// that NVML returned is ours ([returned]): its own is a function that may be
// missing, and nvml.Return calls it whenever it is printed.
type library struct {
	nvml.Interface

	mu  sync.Mutex
	has map[string]bool
}

// openLibrary loads and initialises NVML: the library that is named, or else
// the one that the loader finds, or else one where others have it. It may take
// seconds per GPU, or hang with the driver.
//
// NVML is never shut down: the end of the process does that, and Shutdown after
// a library that was not found is one more way to die.
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
		case ret != nvml.ERROR_LIBRARY_NOT_FOUND: // of two libraries in a process the first would be called
			return nil, failureToInit(int(ret), h)
		}
	}
	f := failureToInit(retNoLibrary, h)
	if path != "" {
		f.Kind, f.Detail = gpu.NoLibrary, path+" "+gpu.NoSuchLibrary
	}
	return nil, f
}

// lacks says whether none of the names of a function is there. Later versions of
// a function have names of their own, of which the binding takes the last.
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

// askAgain is after how long a device is asked again for what it did not support.
const askAgain = 10 * time.Minute

// asker asks one device. It belongs to the goroutine of its GPU.
type asker struct {
	lib     *library
	dev     nvml.Device
	refused map[string]refusal // by what was asked for, and function
	lost    string             // the device is
	gone    int                // what NVML returned when it stopped working altogether, or 0
	trouble bool               // some call failed that might not have
}

type refusal struct {
	ret   int
	until time.Time
}

func newAsker(lib *library, dev nvml.Device) *asker {
	return &asker{lib: lib, dev: dev, refused: make(map[string]refusal)}
}

// ask makes a call of the function that has these names, unless the library lacks
// it or the device has refused it lately. It returns what NVML did, 0 for success.
func (a *asker) ask(call func() nvml.Return, names ...string) int {
	return a.askFor("", call, names...)
}

// askFor is ask for one of several things that a function gives.
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
		a.trouble = a.trouble || ret == retInvalid // perhaps the handle is not valid any more
	case retNotFound: // an answer, where it can be
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

// value asks for something that is absent if the device does not give it.
func value[T any](a *asker, call func() (T, nvml.Return), names ...string) *T {
	return valueOf(a, "", call, names...)
}

// valueOf is value for one of several things that a function gives.
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

// as is a pointer to another type of number.
func as[T, F int | int32 | uint32 | uint64](v *F) *T {
	if v == nil {
		return nil
	}
	return new(T(*v))
}
