package sim

// cacheBlock is how many tokens a block of the prefix cache has: vLLM's default.
const cacheBlock = 16

// A prefixCache holds the blocks of prompts whose prefill need not be repeated. A block is named by the hash of the
// prompt up to its end, so finding a block means that everything before it is the same too. The least recently used
// block is evicted first; among those of one prompt, the last one. So a block never outlives one before it.
type prefixCache struct {
	capacity int // capacity in blocks
	blocks   map[uint64]*cachedBlock
	ring     cachedBlock // next is the most recently used block, prev the next to be evicted
}

type cachedBlock struct {
	name       uint64
	prev, next *cachedBlock
}

// newPrefixCache returns a cache for so many tokens; nil if that is less than a block.
func newPrefixCache(tokens int) *prefixCache {
	if tokens < cacheBlock {
		return nil
	}
	c := &prefixCache{capacity: tokens / cacheBlock, blocks: make(map[uint64]*cachedBlock)}
	c.ring.prev, c.ring.next = &c.ring, &c.ring
	return c
}

// hits is how many of a prompt's blocks are cached, from the first one without a gap.
func (c *prefixCache) hits(prompt []uint64) int {
	for i, name := range prompt {
		if c.blocks[name] == nil {
			return i
		}
	}
	return len(prompt)
}

// use records that a prompt was prefilled, up to the capacity.
func (c *prefixCache) use(prompt []uint64) {
	prompt = prompt[:min(len(prompt), c.capacity)]
	for i := len(prompt) - 1; i >= 0; i-- {
		b := c.blocks[prompt[i]]
		if b == nil {
			b = &cachedBlock{name: prompt[i]}
			c.blocks[b.name] = b
		} else {
			b.unlink()
		}
		b.linkAfter(&c.ring)
	}
	for len(c.blocks) > c.capacity {
		oldest := c.ring.prev
		oldest.unlink()
		delete(c.blocks, oldest.name)
	}
}

func (b *cachedBlock) unlink() {
	b.prev.next, b.next.prev = b.next, b.prev
}

func (b *cachedBlock) linkAfter(at *cachedBlock) {
	b.prev, b.next = at, at.next
	b.prev.next, b.next.prev = b, b
}
