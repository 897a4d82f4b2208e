package policy

import (
	"slices"
	"testing"
	"time"
)

func TestUsual(t *testing.T) {
	tokens := func(all ...float64) (peers []Peer) {
		for _, s := range all {
			peers = append(peers, Peer{Token: s, Slots: 1 / s})
		}
		return peers
	}
	for what, c := range map[string]struct {
		peers        []Peer
		token, slots float64
	}{
		"nobody":                   {nil, 0, 0},
		"two":                      {tokens(1, 5), 0, 0},
		"two of three":             {tokens(1, 5, 1), 1, 1},
		"each is unlike":           {tokens(9, 1, 3), 3, 1. / 3},
		"two and two":              {tokens(1, 5, 1, 5), 5, 1. / 5},
		"three and two":            {tokens(5, 1, 5, 1, 1), 1, 1},
		"only those that are know": {append(tokens(1, 1, 1, 8), make([]Peer, 20)...), 1, 1},
	} {
		if got := Usual(c.peers); got.Token != c.token || got.Slots != c.slots {
			t.Errorf("%s: %+v, want %v and %v", what, got, c.token, c.slots)
		}
	}
}

func TestNotes(t *testing.T) {
	usual := Peer{Token: 0.012, Slots: 16, KV: 140_000, Context: 32_768}
	for what, c := range map[string]struct {
		peer, usual Peer
		want        []string
	}{
		"as usual":             {usual, usual, nil},
		"nothing is known":     {Peer{}, usual, nil},
		"nothing is usual":     {usual, Peer{}, nil},
		"a card of less speed": {Peer{Token: 0.035}, usual, nil},
		"slow":                 {Peer{Token: 0.0625}, usual, []string{"slow: 62.5ms for a token, 5.2 times the usual 12ms"}},
		"fast":                 {Peer{Token: 0.001, Slots: 1000, KV: 1e7, Context: 1e6}, usual, nil},
		"few slots":            {Peer{Slots: 2}, usual, []string{"small: 2 at once, where 16 are usual"}},
		"half of the slots":    {Peer{Slots: 8}, usual, nil},
		"little cache":         {Peer{KV: 8000}, usual, []string{"small: a KV cache of 8000 tokens, where 140000 are usual"}},
		"a card of less":       {Peer{KV: 30_000}, usual, nil},
		"a short context":      {Peer{Context: 4096}, usual, []string{"small: a context of 4096 tokens, where 32768 are usual"}},
		"slow and small":       {Peer{Token: 1.5, Slots: 1}, usual, []string{"slow: 1.5s for a token, 125.0 times the usual 12ms", "small: 1 at once, where 16 are usual"}},
	} {
		var cmp Comparison
		now := time.Now()
		if got := cmp.Notes(c.peer, c.usual, now); got != nil {
			t.Errorf("%s: %v at once", what, got)
		}
		var got []string
		for _, n := range cmp.Notes(c.peer, c.usual, now.Add(3*time.Second)) {
			got = append(got, n.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

// A worker near the bound is not named and unnamed over and over.
func TestNotesDoNotFlap(t *testing.T) {
	var c Comparison
	usual := Peer{Token: 0.01}
	now, changes, was := time.Now(), 0, 0
	for i := range 2000 { // 1000 s
		token := 0.027
		if i%2 == 0 || i > 100 && i < 120 || i > 1000 && i < 1030 {
			token = 0.032
		}
		n := len(c.Notes(Peer{Token: token}, usual, now))
		if n != was {
			changes, was = changes+1, n
		}
		now = now.Add(500 * time.Millisecond)
	}
	if changes != 1 || was != 1 {
		t.Errorf("%d changes, in the end %d notes; want one, and that it stays", changes, was)
	}
	for range 59 {
		c.Notes(Peer{Token: 0.02}, usual, now)
		now = now.Add(500 * time.Millisecond)
	}
	if len(c.Notes(Peer{Token: 0.02}, usual, now)) == 0 {
		t.Error("no note after 29.5 s of less")
	}
	if now = now.Add(time.Second); len(c.Notes(Peer{Token: 0.02}, usual, now)) != 0 {
		t.Error("a note after 30 s of less")
	}
	if len(c.Notes(Peer{Token: 0.05}, Peer{}, now.Add(time.Minute))) != 0 {
		t.Error("a note in a pool where nothing is usual")
	}
}
