package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// What policy.KeyLimits promises holds only if gateways tell each other in time.
func TestUsageIsToldInTimeToBeHeard(t *testing.T) {
	if subjects.UsageEvery*3/2 > policy.ReportDelay {
		t.Errorf("usage is told every %v: that leaves too little of %v to arrive", subjects.UsageEvery, policy.ReportDelay)
	}
}

// Nobody may slip through before the keys are known.
func TestBeforeTheKeysAreRead(t *testing.T) {
	for mode, open := range map[AuthMode]bool{"": false, AuthAuto: false, AuthRequired: false, AuthOff: true} {
		k := newKeyring(new(bus), mode)
		for _, h := range []http.Header{{}, {"X-Api-Key": {"sk-pulley-0123456789-secret"}}} {
			c, err := k.authenticate(h, time.Now())
			e := new(api.Error)
			if open != (err == nil) || !open && (!errors.As(err, &e) || e.Status != 503 || e.Code != "starting" || e.RetryAfter != time.Second) {
				t.Errorf("auth %q: got %v, %v", mode, c, err)
			}
		}
	}
}

// Nor may a limit be overrun before the other gateways could be heard.
func TestBeforeTheOthersAreHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, h := ringOf(1)
		k.synced = make(chan struct{})
		c, err := k.authenticate(h, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		e := new(api.Error)
		if err := k.begin(c, 1, make(http.Header), time.Now()); !errors.As(err, &e) || e.Status != 503 || e.Code != "starting" {
			t.Errorf("got %v", err)
		}
		k.end(c, 1, 1, time.Now()) // of no effect
		if own := c.key.usage.own(); own != (policy.Used{}) {
			t.Errorf("a request that did not begin used %+v", own)
		}
		time.AfterFunc(100*time.Millisecond, func() { close(k.synced) })
		if err := k.begin(c, 1, make(http.Header), time.Now()); err != nil {
			t.Errorf("heard while the request waited: %v", err)
		}
	})
}

// ringOf has n keys with every limit, and what a client sends with the last.
func ringOf(n int) (*keyring, http.Header) {
	k := newKeyring(new(bus), AuthAuto)
	keys := make(map[string]policy.Key, n)
	last := ""
	for i := range n {
		last = fmt.Sprintf("sk-pulley-%010d-c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2V", i)
		id, _ := policy.KeyID(last)
		keys[id] = policy.Key{ID: id, Tenant: "acme", Hash: policy.HashKey(last), RPM: 1e9, TPM: 1e9, Concurrency: 1e9}
	}
	k.set(keys)
	close(k.synced)
	k.peers.Store(2)
	return k, http.Header{"Authorization": {"Bearer " + last}}
}

func BenchmarkAuthenticate(b *testing.B) {
	k, h := ringOf(10_000)
	now := time.Now()
	for b.Loop() {
		if _, err := k.authenticate(h, now); err != nil {
			b.Fatal(err)
		}
	}
}

// A request of a key with every limit, among 10 000 keys and three gateways.
func BenchmarkKeyLimits(b *testing.B) {
	k, h := ringOf(10_000)
	now := time.Now()
	c, err := k.authenticate(h, now)
	if err != nil {
		b.Fatal(err)
	}
	header := make(http.Header)
	for b.Loop() {
		now = now.Add(time.Microsecond)
		clear(header)
		if err := k.begin(c, 10, header, now); err != nil {
			b.Fatal(err)
		}
		k.end(c, 10, 5, now)
	}
}

// The same on all cores and with all keys in turn.
func BenchmarkKeyLimitsInParallel(b *testing.B) {
	k, _ := ringOf(10_000)
	var all []*activeKey
	for _, key := range *k.keys.Load() {
		all = append(all, key)
	}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		header := make(http.Header)
		for i := 0; pb.Next(); i++ {
			key, now := all[i%len(all)], time.Now()
			clear(header)
			c := &caller{key: key, tenant: key.Tenant}
			if err := k.begin(c, 10, header, now); err != nil {
				b.Error(err)
				return
			}
			k.end(c, 10, 5, now)
		}
	})
}

func BenchmarkSetKeys(b *testing.B) {
	k, _ := ringOf(10_000)
	keys := make(map[string]policy.Key)
	for id, key := range *k.keys.Load() {
		keys[id] = key.Key
	}
	for b.Loop() {
		k.set(keys)
	}
}
