package gateway

import (
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// retries bounds this gateway's retries, pool by pool: see policy.RetryBudget.
type retries struct {
	share float64 // of the first attempts; fixed

	mu     sync.Mutex
	byPool map[string]*policy.RetryBudget
}

func newRetries(share float64) *retries {
	return &retries{share: share, byPool: make(map[string]*policy.RetryBudget)}
}

// first counts a request that enters a pool.
func (rs *retries) first(pool string, now time.Time) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.ofLocked(pool).First(now)
}

// take reports whether a request of a pool may be tried again, and counts that.
func (rs *retries) take(pool string, now time.Time) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.ofLocked(pool).Take(rs.share, now)
}

func (rs *retries) ofLocked(pool string) *policy.RetryBudget {
	b := rs.byPool[pool]
	if b == nil {
		b = new(policy.RetryBudget)
		rs.byPool[pool] = b
	}
	return b
}
