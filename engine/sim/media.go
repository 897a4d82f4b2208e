package sim

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
)

var imagesEndpoint = endpoint{
	idPrefix: "img-",
	decodes:  true,
	needs:    "prompt",
	needed:   func(b *body) bool { return b.Prompt != nil },
	answer:   func(b *body, wk *work) answer { return &images{work: wk, n: min(max(b.N, 1), 10)} },
}

// images is n small pictures of one colour that is derived from the prompt's hash.
type images struct {
	*work
	n int
}

func (p *images) whole() (string, []byte) {
	data := []any{}
	for i := range p.n {
		data = append(data, object{"b64_json": p.picture(mix(p.hash + uint64(i)))}) // bytes are encoded as base64
	}
	return "application/json", jsonOf(object{
		"created": p.created, "data": data,
		"usage": object{"input_tokens": p.in, "output_tokens": p.out, "total_tokens": p.in + p.out},
	})
}

func (p *images) picture(x uint64) []byte {
	picture := image.NewPaletted(image.Rect(0, 0, 8, 8), color.Palette{
		color.RGBA{byte(x), byte(x >> 8), byte(x >> 16), 255},
	})
	var b bytes.Buffer
	_ = png.Encode(&b, picture) // a buffer accepts all writes
	return b.Bytes()
}

var transcriptionEndpoint = endpoint{
	idPrefix: "transcript-",
	decodes:  true,
	form:     true,
	answer: func(b *body, wk *work) answer {
		return &transcription{work: wk, format: string(b.ResponseFormat)}
	},
}

// transcription is a text for a file that is not evaluated.
type transcription struct {
	*work
	format string // of the JSON
}

func (t *transcription) whole() (string, []byte) {
	if t.format == `"text"` {
		return "text/plain; charset=utf-8", []byte(t.text() + "\n")
	}
	return "application/json", jsonOf(object{"text": t.text(), "usage": t.usageObject()})
}

func (t *transcription) usageObject() object {
	return object{"type": "tokens", "input_tokens": t.in, "output_tokens": t.out, "total_tokens": t.in + t.out}
}

func (t *transcription) begin(*stream) {}

func (t *transcription) tokens(st *stream, i, n int) {
	st.event("", jsonOf(object{"type": "transcript.text.delta", "delta": t.piece(i, n)}))
}

func (t *transcription) end(st *stream) {
	st.event("", jsonOf(object{"type": "transcript.text.done", "text": t.text(), "usage": t.usageObject()}))
	st.event("", []byte("[DONE]"))
}

var speechEndpoint = endpoint{
	idPrefix: "speech-",
	decodes:  true,
	needs:    "input",
	needed:   func(b *body) bool { return b.Input != nil },
	answer: func(_ *body, wk *work) answer {
		wk.stream = true
		return &speech{wk}
	},
}

// speech is bytes at the pace of tokens. They are the text itself, not sound.
type speech struct {
	*work
}

func (p *speech) contentType() string { return "audio/mpeg" }

func (p *speech) whole() (string, []byte) { return p.contentType(), []byte(p.text()) }

func (p *speech) begin(*stream) {}

func (p *speech) tokens(st *stream, i, n int) { st.write([]byte(p.piece(i, n))) }

func (p *speech) end(*stream) {}
