package worker

import (
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// However the answers come, there are as many bids as the broker has.
func TestEachAnswerTakesOutOneBid(t *testing.T) {
	at := time.Now()
	l := &lane{open: []bid{{rung: 0, expires: at.Add(3 * time.Second)}, {rung: 1, expires: at}, {rung: 4, expires: at.Add(time.Second)}}}
	l.answered() // the broker answered the one at rung 1, and has not got that at rung 0 yet
	if len(l.open) != 2 || l.open[0].rung != 1 {
		t.Fatalf("open: %+v", l.open)
	}
	l.findLate(at.Add(answerLate + time.Millisecond)) // of course that one never expires
	if len(l.open) != 1 || l.late != 1 {
		t.Fatalf("open: %+v, late %d", l.open, l.late)
	}
	l.answered() // the one at rung 0
	if len(l.open) != 1 || l.open[0].rung != 4 || l.late != 0 {
		t.Errorf("open: %+v, late %d", l.open, l.late)
	}
	l.ended()
	if len(l.open) != 0 {
		t.Errorf("open: %+v", l.open)
	}
	l.ended() // of nothing that is known
	if b := l.answered(); b != (bid{}) || l.late != 0 {
		t.Errorf("answered: %+v, late %d", b, l.late)
	}
	l.open = append(l.open, bid{expires: at})
	l.findLate(at.Add(time.Minute))
	l.findLate(at.Add(2 * time.Minute))
	if l.late != 0 {
		t.Error("a lost answer is awaited for ever")
	}
}

// Answers to bids may get lost, all of them. As many requests as the lane has bids
// for are waiting all the while.
func TestLostAnswersAreNotAwaitedForEver(t *testing.T) {
	const depth = 2
	for _, lost := range []int{1, 2, 4, 16} {
		l := new(lane)
		begun := time.Now()
		park := func(now time.Time) { l.open = append(l.open, bid{expires: now.Add(bidExpires)}) }
		for range lost {
			park(begun)
		}
		known := 0 // bids that the broker has
		for after := time.Duration(0); ; after += bidTick {
			if after > 3*(bidExpires+answerLate) {
				t.Errorf("%d answers were lost: no more than %d bids get through after %v", lost, known, after)
				break
			}
			l.findLate(begun.Add(after))
			served := 0
			for served < 100 {
				for len(l.open) < depth {
					park(begun.Add(after))
					known++
				}
				if known == 0 {
					break
				}
				known--
				l.answered()
				served++
			}
			if served == 100 {
				break
			}
		}
	}
}

// A worker's first bids are on their way while the consumer is being made, and only
// the later ones find it: those count. Were they forgotten, the worker would have
// one bid more than it knows of for as long as requests keep coming, and under
// round-robin twice its share.
func TestABidThatFoundNoConsumerSaysNothingOfLaterOnes(t *testing.T) {
	at := time.Now()
	park := func(l *lane, n int) {
		for range n {
			l.bids++
			l.open = append(l.open, bid{number: l.bids, expires: at.Add(bidExpires + time.Duration(l.bids))})
		}
	}
	for _, before := range []int{0, 1, bidNumbers - 2, bidNumbers - 1} { // numbers come again
		l := &lane{bids: before}
		park(l, 4)
		for i, want := range []int{3, 2, 1} {
			if l.noConsumer((before + i + 1) % bidNumbers); len(l.open) != want {
				t.Errorf("after %d bids: %d are open when %d of 4 found no consumer, want %d", before, len(l.open), i+1, want)
			}
		}
		if len(l.open) == 1 && !l.open[0].expires.Equal(at.Add(bidExpires+time.Duration(before+4))) {
			t.Error("the one that is left is not the last")
		}
		park(l, 2) // the consumer is deleted: the broker tells of all three, the cheapest first
		for i, number := range []int{5, 4, 6} {
			l.noConsumer((before + number) % bidNumbers)
			if want := []int{1, 1, 0}[i]; len(l.open) != want {
				t.Errorf("after %d bids: %d are open when bid %d was gone, want %d", before, len(l.open), number, want)
			}
		}
	}
}

// The second of two bids, a cheaper one, has brought a request when the consumer of
// the first one is deleted: none is open then.
func TestADeletedConsumerLeavesNoBidOfBefore(t *testing.T) {
	at := time.Now().Add(bidExpires)
	l := &lane{bids: 2, open: []bid{{number: 2, rung: 2, expires: at}, {number: 1, rung: 5, expires: at}}}
	l.answered()
	if l.noConsumer(1); len(l.open) != 0 {
		t.Errorf("open: %+v", l.open)
	}
}

// A reference that leaves its home lanes out stands for those that its gateway has listed, for as long as it comes.
func TestHomeLanesThatAReferenceLeavesOut(t *testing.T) {
	type ref struct {
		gateway string
		homes   []string
		id      uint64
		after   time.Duration
	}
	for name, c := range map[string]struct {
		refs []ref
		want []string
	}{
		"listed":            {[]ref{{"a", []string{"y", "x"}, 5, 0}}, []string{"x", "y"}},
		"left out":          {[]ref{{"a", []string{"y", "x"}, 5, 0}, {"a", nil, 5, 1}, {"a", nil, 5, 1}}, []string{"x", "y"}},
		"none any longer":   {[]ref{{"a", []string{"y", "x"}, 5, 0}, {"a", nil, 0, 1}}, nil},
		"a list was lost":   {[]ref{{"a", []string{"y", "x"}, 5, 0}, {"a", nil, 6, 1}}, []string{"x", "y"}},
		"never listed":      {[]ref{{"a", nil, 5, 0}}, nil},
		"after a break":     {[]ref{{"a", []string{"y", "x"}, 5, 0}, {"a", nil, 5, 20}}, []string{"x", "y"}},
		"of two gateways":   {[]ref{{"a", []string{"x"}, 5, 0}, {"b", []string{"y"}, 6, 0}, {"a", nil, 5, 1}, {"b", nil, 6, 0}}, []string{"x", "y"}},
		"one of two is new": {[]ref{{"a", []string{"x"}, 5, 0}, {"b", []string{"y"}, 6, 0}, {"a", nil, 5, 1}, {"b", []string{"z"}, 7, 0}}, []string{"x", "z"}},
	} {
		p := &pool{name: "m"}
		now := time.Now()
		for _, r := range c.refs {
			now = now.Add(r.after * time.Second)
			p.onReference(r.gateway, subjects.PoolReference{Workers: 2, HomeLanes: r.homes, HomesID: r.id}, now)
		}
		if !slices.Equal(p.homes, c.want) {
			t.Errorf("%s: %q, want %q", name, p.homes, c.want)
		}
	}
}
