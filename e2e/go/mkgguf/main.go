// Command mkgguf writes a tiny language model with random weights as a GGUF file, so that a real
// engine of the llama.cpp family can be tested without downloading a model. The model knows a
// made-up vocabulary of pronounceable words, never stops by itself, and answers a prompt with the
// same words every time when sampled greedily.
//
// The format (version 3, little endian): a header with counts, key-value pairs, a table of tensors
// with offsets, then the tensor data, each tensor aligned to 32 bytes.
package main

import (
	"bufio"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"os"
)

// Value types of GGUF key-value pairs, as far as used here.
const (
	typeUint32  = 4
	typeInt32   = 5
	typeFloat32 = 6
	typeBool    = 7
	typeString  = 8
	typeArray   = 9
)

const (
	version   = 3
	alignment = 32
	tensorF32 = 0
)

// model is the shape of the network: small enough for hundreds of tokens a second on one core.
type model struct {
	context int // tokens
	embed   int
	layers  int
	heads   int
	kvHeads int
	feed    int
	words   int
	seed    uint64
}

// tensor is a named array whose values are produced in order as the file is written.
type tensor struct {
	name   string
	dims   []int // fastest first, as GGUF has them
	value  func(i int) float32
	offset uint64
}

type pair struct {
	key   string
	value any
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("mkgguf: ")
	out := flag.String("o", "tiny.gguf", "file to write")
	m := model{embed: 128, layers: 2, heads: 4, kvHeads: 2, feed: 256}
	flag.IntVar(&m.context, "context", 4096, "context length in tokens")
	flag.IntVar(&m.words, "words", 1024, "size of the vocabulary, letters included")
	flag.Uint64Var(&m.seed, "seed", 1, "seed of the weights and the words")
	flag.Parse()
	if err := writeFile(*out, m); err != nil {
		log.Fatal(err)
	}
}

func writeFile(path string, m model) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := m.write(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func (m model) write(w io.Writer) error {
	rng := rand.New(rand.NewPCG(m.seed, 0))
	vocab := newVocabulary(rng, m.words)
	tensors := m.tensors(rng, vocab)
	return (&encoder{w: w}).file(m.metadata(vocab), tensors)
}

func (m model) metadata(v *vocabulary) []pair {
	return []pair{
		{"general.architecture", "llama"},
		{"general.name", "tiny-random"},
		{"general.file_type", uint32(0)}, // all tensors are float32
		{"llama.context_length", uint32(m.context)},
		{"llama.embedding_length", uint32(m.embed)},
		{"llama.block_count", uint32(m.layers)},
		{"llama.feed_forward_length", uint32(m.feed)},
		{"llama.attention.head_count", uint32(m.heads)},
		{"llama.attention.head_count_kv", uint32(m.kvHeads)},
		{"llama.attention.layer_norm_rms_epsilon", float32(1e-5)},
		{"llama.rope.dimension_count", uint32(m.embed / m.heads)},
		{"llama.rope.freq_base", float32(10000)},
		{"llama.vocab_size", uint32(len(v.tokens))},
		{"tokenizer.ggml.model", "llama"},
		{"tokenizer.ggml.pre", "default"},
		{"tokenizer.ggml.tokens", v.tokens},
		{"tokenizer.ggml.scores", v.scores},
		{"tokenizer.ggml.token_type", v.types},
		{"tokenizer.ggml.unknown_token_id", uint32(tokenUnknown)},
		{"tokenizer.ggml.bos_token_id", uint32(tokenBegin)},
		{"tokenizer.ggml.eos_token_id", uint32(tokenEnd)},
		{"tokenizer.ggml.add_bos_token", true},
		{"tokenizer.ggml.add_eos_token", false},
	}
}

func (m model) tensors(rng *rand.Rand, v *vocabulary) []*tensor {
	one := func(int) float32 { return 1 }
	normal := func(scale float64) func(int) float32 {
		return func(int) float32 { return float32(rng.NormFloat64() * scale) }
	}
	fan := func(in int) func(int) float32 { return normal(1 / math.Sqrt(float64(in))) }
	kv := m.embed / m.heads * m.kvHeads

	ts := []*tensor{{name: "token_embd.weight", dims: []int{m.embed, len(v.tokens)}, value: normal(1)}}
	for l := range m.layers {
		block := func(name string, value func(int) float32, dims ...int) {
			ts = append(ts, &tensor{name: fmt.Sprintf("blk.%d.%s.weight", l, name), dims: dims, value: value})
		}
		block("attn_norm", one, m.embed)
		block("attn_q", fan(m.embed), m.embed, m.embed)
		block("attn_k", fan(m.embed), m.embed, kv)
		block("attn_v", fan(m.embed), m.embed, kv)
		block("attn_output", fan(m.embed), m.embed, m.embed)
		block("ffn_norm", one, m.embed)
		block("ffn_gate", fan(m.embed), m.embed, m.feed)
		block("ffn_up", fan(m.embed), m.embed, m.feed)
		block("ffn_down", fan(m.feed), m.feed, m.embed)
	}
	// Rows of zeros keep the special and byte tokens below the best word, so that greedy and
	// moderately warm sampling yield words only and never the end of the text.
	row := fan(m.embed)
	output := func(i int) float32 {
		if i/m.embed < v.firstWord {
			return 0
		}
		return 3 * row(i)
	}
	return append(ts,
		&tensor{name: "output_norm.weight", dims: []int{m.embed}, value: one},
		&tensor{name: "output.weight", dims: []int{m.embed, len(v.tokens)}, value: output})
}

// encoder writes GGUF; the first error sticks.
type encoder struct {
	w   io.Writer
	n   uint64
	err error
}

func (e *encoder) file(pairs []pair, tensors []*tensor) error {
	e.bytes([]byte("GGUF"))
	e.fixed(uint32(version))
	e.fixed(uint64(len(tensors)))
	e.fixed(uint64(len(pairs)))
	for _, p := range pairs {
		e.string(p.key)
		e.value(p.value)
	}
	var offset uint64
	for _, t := range tensors {
		t.offset = offset
		offset += (4*uint64(t.size()) + alignment - 1) / alignment * alignment
		e.string(t.name)
		e.fixed(uint32(len(t.dims)))
		for _, d := range t.dims {
			e.fixed(uint64(d))
		}
		e.fixed(uint32(tensorF32))
		e.fixed(t.offset)
	}
	e.pad()
	for _, t := range tensors {
		e.data(t)
		e.pad()
	}
	return e.err
}

func (e *encoder) value(v any) {
	switch v := v.(type) {
	case uint32:
		e.fixed(uint32(typeUint32))
		e.fixed(v)
	case float32:
		e.fixed(uint32(typeFloat32))
		e.fixed(v)
	case bool:
		e.fixed(uint32(typeBool))
		e.fixed(v)
	case string:
		e.fixed(uint32(typeString))
		e.string(v)
	case []string:
		e.array(typeString, len(v))
		for _, s := range v {
			e.string(s)
		}
	case []float32:
		e.array(typeFloat32, len(v))
		e.fixed(v)
	case []int32:
		e.array(typeInt32, len(v))
		e.fixed(v)
	default:
		panic(fmt.Sprintf("no GGUF type for %T", v))
	}
}

func (e *encoder) array(elem uint32, n int) {
	e.fixed(uint32(typeArray))
	e.fixed(elem)
	e.fixed(uint64(n))
}

func (e *encoder) data(t *tensor) {
	b := make([]byte, 0, 4*t.size())
	for i := range t.size() {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(t.value(i)))
	}
	e.bytes(b)
}

func (e *encoder) string(s string) {
	e.fixed(uint64(len(s)))
	e.bytes([]byte(s))
}

func (e *encoder) fixed(v any) {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err)
	}
	e.bytes(b)
}

func (e *encoder) pad() {
	if rest := e.n % alignment; rest != 0 {
		e.bytes(make([]byte, alignment-rest))
	}
}

func (e *encoder) bytes(b []byte) {
	if e.err != nil {
		return
	}
	n, err := e.w.Write(b)
	e.n += uint64(n)
	e.err = err
}

func (t *tensor) size() int {
	n := 1
	for _, d := range t.dims {
		n *= d
	}
	return n
}
