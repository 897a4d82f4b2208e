package sim

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"math"
	"slices"
)

var embeddingsEndpoint = endpoint{
	idPrefix: "embd-",
	needs:    "input",
	needed:   func(b *body) bool { return b.Input != nil },
	answer:   func(b *body, wk *work) answer { return &embeddings{work: wk, body: b} },
}

const (
	defaultDimensions = 16
	maxDimensions     = 1 << 16
)

// embeddings is one vector per text, of length 1 and derived from the text's hash.
type embeddings struct {
	*work
	body *body
}

func (e *embeddings) whole() (string, []byte) {
	data := make([]any, 0, len(e.body.Input))
	for i, text := range e.body.Input {
		vector := e.vector(PromptHash(text))
		item := object{"object": "embedding", "index": i, "embedding": vector}
		if e.body.EncodingFormat == "base64" {
			raw, _ := binary.Append(nil, binary.LittleEndian, vector) // float32 has a fixed size
			item["embedding"] = base64.StdEncoding.EncodeToString(raw)
		}
		data = append(data, item)
	}
	return "application/json", jsonOf(object{
		"id": e.id, "object": "list", "created": e.created, "model": e.model, "data": data,
		"usage": object{"prompt_tokens": e.in, "total_tokens": e.in},
	})
}

func (e *embeddings) vector(hash uint64) []float32 {
	n := e.body.Dimensions
	if n < 1 {
		n = defaultDimensions
	}
	v := make([]float32, min(n, maxDimensions))
	sum := 0.0
	for i := range v {
		v[i] = float32(unit(hash+uint64(i))*2 - 1)
		sum += float64(v[i]) * float64(v[i])
	}
	for i := range v {
		v[i] /= float32(math.Sqrt(sum))
	}
	return v
}

// unit is a number from 0 to 1 derived from x.
func unit(x uint64) float64 { return float64(mix(x)>>11) / (1 << 53) }

var rerankEndpoint = endpoint{
	idPrefix: "rerank-",
	needs:    "query",
	needed:   func(b *body) bool { return b.Query != nil && b.Documents != nil },
	answer:   func(b *body, wk *work) answer { return &reranking{work: wk, body: b} },
}

// reranking scores each document by the hash of it and the query.
type reranking struct {
	*work
	body *body
}

type rerankResult struct {
	Index    int               `json:"index"`
	Document map[string]string `json:"document"`
	Score    float64           `json:"relevance_score"`
}

func (p *reranking) whole() (string, []byte) {
	results := []rerankResult{}
	for i, doc := range p.body.Documents {
		score := unit(PromptHash(append(slices.Clone(p.body.Query), doc)...))
		results = append(results, rerankResult{i, map[string]string{"text": doc}, score})
	}
	slices.SortStableFunc(results, func(a, b rerankResult) int { return cmp.Compare(b.Score, a.Score) })
	if n := p.body.TopN; n != nil && *n > 0 && *n < len(results) {
		results = results[:*n]
	}
	return "application/json", jsonOf(object{
		"id": p.id, "model": p.model, "usage": object{"total_tokens": p.in}, "results": results,
	})
}
