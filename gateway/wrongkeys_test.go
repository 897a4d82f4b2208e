package gateway

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// However many addresses there are, memory is bounded, and an address that goes on is bounded too.
func TestWrongKeysFromManyAddresses(t *testing.T) {
	k, now := newWrongKeys(30), time.Unix(1e9, 0)
	one := netip.MustParseAddr("192.0.2.7")
	passed := 0
	for i := range 4 * maxWrongKeyAddrs {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], uint64(i))
		k.count(netip.AddrFrom16(b), now)
		if i%1000 == 0 {
			if _, ok := k.count(one, now); ok {
				passed++
			}
		}
		now = now.Add(10 * time.Microsecond)
	}
	if n := len(k.full); n > maxWrongKeyAddrs {
		t.Errorf("it knows %d addresses", n)
	}
	if passed < 30 || passed > 250 { // of 263; it may be forgotten a few times, about 3
		t.Errorf("%d wrong keys of one address passed in %v", passed, now.Sub(time.Unix(1e9, 0)))
	}
}

func BenchmarkWrongKeys(b *testing.B) {
	k, now, i := newWrongKeys(30), time.Now(), uint64(0)
	for b.Loop() {
		var a [16]byte
		i++
		binary.BigEndian.PutUint64(a[:], i)
		k.count(netip.AddrFrom16(a), now)
	}
}
