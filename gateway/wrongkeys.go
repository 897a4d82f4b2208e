package gateway

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
)

// maxWrongKeyAddrs bounds how many addresses wrongKeys knows. When there are more, it forgets some.
const maxWrongKeyAddrs = 1 << 16

const tooManyWrongKeys = "too_many_wrong_keys"

// wrongKeys bounds how many wrong keys come from one address. Right ones always pass, wherever they come from: they are
// too long to be guessed, and a client with a wrong key must not keep out others behind the same address.
type wrongKeys struct {
	allow policy.Allowance // fixed after newWrongKeys

	mu   sync.Mutex
	full map[netip.Addr]time.Time // when the address may send as many as any other again
}

func newWrongKeys(perMinute int) *wrongKeys {
	return &wrongKeys{allow: policy.Allowance{Max: perMinute, Per: time.Minute}, full: make(map[netip.Addr]time.Time)}
}

// refuse is the answer to a wrong key from an address; the zero Addr is not bounded.
func (k *wrongKeys) refuse(from netip.Addr, now time.Time) error {
	wait, ok := k.count(from, now)
	if ok {
		return errWrongKey
	}
	return &api.Error{Status: http.StatusTooManyRequests, Code: tooManyWrongKeys, RetryAfter: wait, NoRetry: true,
		Message: "the API key is wrong, or has been revoked, and too many wrong keys have come from this address"}
}

func (k *wrongKeys) count(from netip.Addr, now time.Time) (wait time.Duration, ok bool) {
	if !from.IsValid() {
		return 0, true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	full, known := k.full[from]
	if !known && len(k.full) >= maxWrongKeyAddrs {
		k.forgetLocked(now)
	}
	k.full[from], wait, ok = k.allow.Take(full, now)
	return wait, ok
}

// forgetLocked makes room: it forgets, of some addresses in no order, those that are of no effect any more, or else one.
func (k *wrongKeys) forgetLocked(now time.Time) {
	const some = 8
	looked, last := 0, netip.Addr{}
	for addr, full := range k.full {
		if last = addr; !full.After(now) {
			delete(k.full, addr)
		}
		if looked++; looked == some {
			break
		}
	}
	if len(k.full) >= maxWrongKeyAddrs {
		delete(k.full, last)
	}
}
