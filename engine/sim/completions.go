package sim

import "encoding/json"

var completionEndpoint = endpoint{
	idPrefix: "cmpl-",
	decodes:  true,
	needs:    "prompt",
	needed:   func(b *body) bool { return b.Prompt != nil },
	answer:   func(_ *body, wk *work) answer { return &completion{work: wk} },
}

// completion is an answer of the legacy API. A chunk differs from the whole only in what is left out.
type completion struct {
	*work
	frame eventFrame
}

type textCompletion struct {
	ID                string          `json:"id"`
	Object            string          `json:"object"`
	Created           int64           `json:"created"`
	Model             string          `json:"model"`
	Choices           []textChoice    `json:"choices"`
	Usage             json.RawMessage `json:"usage,omitempty"`
	SystemFingerprint string          `json:"system_fingerprint"`
	Timings           *timings        `json:"timings,omitempty"`
}

type textChoice struct {
	Text         json.RawMessage `json:"text"`
	Index        int             `json:"index"`
	Logprobs     *string         `json:"logprobs"`
	FinishReason *string         `json:"finish_reason"`
}

func (c *completion) object(usage json.RawMessage, said *timings, choices ...textChoice) []byte {
	return jsonOf(&textCompletion{
		ID: c.id, Object: "text_completion", Created: c.created, Model: c.model,
		Choices: append([]textChoice{}, choices...), Usage: usage, SystemFingerprint: c.engine, Timings: said,
	})
}

func (c *completion) noUsage() json.RawMessage {
	if c.usage {
		return json.RawMessage("null")
	}
	return nil
}

func (c *completion) whole() (string, []byte) {
	choice := textChoice{Text: jsonOf(c.text()), FinishReason: new(c.finish("length", "stop"))}
	return "application/json", c.object(jsonOf(c.usageOf()), c.timingsOf(), choice)
}

func (c *completion) begin(*stream) {
	c.frame = newEventFrame(c.object(c.noUsage(), nil, textChoice{Text: framePiece}))
}

func (c *completion) tokens(st *stream, i, n int) { c.frame.write(st, c.work, i, n) }

func (c *completion) end(st *stream) {
	last := textChoice{Text: json.RawMessage(`""`), FinishReason: new(c.finish("length", "stop"))}
	if !c.usage {
		st.event("", c.object(nil, c.timingsOf(), last))
	} else {
		st.event("", c.object(c.noUsage(), nil, last))
		st.event("", c.object(jsonOf(c.usageOf()), c.timingsOf()))
	}
	st.event("", []byte("[DONE]"))
}
