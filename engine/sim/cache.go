package sim

// cacheBlock is how many tokens a block of the prefix cache has: vLLM's default.
const cacheBlock = 16

// A prefixCache knows the blocks of prompts whose prefill need not be done again. A block is named by the hash of the
// prompt up to its end, so that finding it means that all before it is the same too. The block that was used longest ago
// goes first; of those that one prompt has used, the last one of the prompt. So a block never outlives one before it.
type prefixCache struct {
	room   int // blocks
	blocks map[uint64]*cachedBlock
	ring   cachedBlock // next is the one used last, prev the one to go first
}

type cachedBlock struct {
	name       uint64
	prev, next *cachedBlock
}

// newPrefixCache has room for so many tokens; nil if that is less than a block.
func newPrefixCache(tokens int) *prefixCache {
	if tokens < cacheBlock {
		return nil
	}
	c := &prefixCache{room: tokens / cacheBlock, blocks: make(map[uint64]*cachedBlock)}
	c.ring.prev, c.ring.next = &c.ring, &c.ring
	return c
}

// hits is how many of a prompt's blocks are there, from the first on without a gap.
func (c *prefixCache) hits(prompt []uint64) int {
	for i, name := range prompt {
		if c.blocks[name] == nil {
			return i
		}
	}
	return len(prompt)
}

// use notes that a prompt was prefilled, as far as there is room for it.
func (c *prefixCache) use(prompt []uint64) {
	prompt = prompt[:min(len(prompt), c.room)]
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
	for len(c.blocks) > c.room {
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
