package worker

import (
	"testing"
	"time"
)

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
