package metric

import "sync"

// MaxValues is how many values a label may have that clients choose.
const MaxValues = 1000

// Other stands for the values of such a label that came later.
const Other = "other"

// Bounded are the values of a label that clients choose. The zero value has none.
type Bounded struct {
	mu     sync.Mutex
	values map[string]struct{}
}

// Value returns the value if it is one of the first MaxValues, else Other.
func (b *Bounded) Value(v string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.values[v]; known {
		return v
	}
	if len(b.values) >= MaxValues {
		return Other
	}
	if b.values == nil {
		b.values = make(map[string]struct{})
	}
	b.values[v] = struct{}{}
	return v
}
