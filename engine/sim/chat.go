package sim

import (
	"bytes"
	"encoding/json"
	"strings"
)

var chatEndpoint = endpoint{
	idPrefix: "chatcmpl-",
	decodes:  true,
	needs:    "messages",
	needed:   func(b *body) bool { return b.Messages != nil },
	answer: func(b *body, wk *work) answer {
		if tool, ok := b.requiredTool(); ok {
			return &toolCall{work: wk, tool: tool}
		}
		return &chat{work: wk}
	},
}

// requiredTool returns the function that the answer has to call, if any.
func (b *body) requiredTool() (name string, ok bool) {
	if len(b.Tools) == 0 {
		return "", false
	}
	name = b.Tools[0].Function.Name
	if string(b.ToolChoice) == `"required"` {
		return name, true
	}
	var choice struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	if json.Unmarshal(b.ToolChoice, &choice) != nil || choice.Function.Name == "" {
		return "", false
	}
	return choice.Function.Name, true
}

type usage struct {
	PromptTokens        int            `json:"prompt_tokens"`
	CompletionTokens    int            `json:"completion_tokens"`
	TotalTokens         int            `json:"total_tokens"`
	PromptTokensDetails *promptDetails `json:"prompt_tokens_details,omitempty"` // nil if nothing is cached
}

type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

func (wk *work) usageOf() *usage {
	u := &usage{PromptTokens: wk.in, CompletionTokens: wk.out, TotalTokens: wk.in + wk.out}
	if wk.caches {
		u.PromptTokensDetails = &promptDetails{wk.cached}
	}
	return u
}

// timings are what llama.cpp says of a prompt in the last part of an answer.
type timings struct {
	CacheN   int     `json:"cache_n"`  // tokens found in the cache
	PromptN  int     `json:"prompt_n"` // tokens computed
	PromptMS float64 `json:"prompt_ms"`
}

func (wk *work) timingsOf() *timings {
	if !wk.timed {
		return nil
	}
	return &timings{wk.cached, wk.computed, float64(wk.read.Microseconds()) / 1000}
}

type chatCompletion struct {
	ID                string       `json:"id"`
	Object            string       `json:"object"`
	Created           int64        `json:"created"`
	Model             string       `json:"model"`
	Choices           []chatChoice `json:"choices"`
	Usage             *usage       `json:"usage"`
	SystemFingerprint string       `json:"system_fingerprint"`
	Timings           *timings     `json:"timings,omitempty"`
}

type chatChoice struct {
	Index        int         `json:"index"`
	Message      chatMessage `json:"message"`
	Logprobs     *string     `json:"logprobs"`
	FinishReason string      `json:"finish_reason"`
}

type chatMessage struct {
	Role      string         `json:"role"`
	Content   *string        `json:"content"`
	Refusal   *string        `json:"refusal"`
	ToolCalls []chatToolCall `json:"tool_calls,omitempty"`
}

type chatToolCall struct {
	Index    *int         `json:"index,omitempty"` // in streams only
	ID       string       `json:"id,omitempty"`
	Type     string       `json:"type,omitempty"`
	Function chatFunction `json:"function"`
}

type chatFunction struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

type chatChunk struct {
	ID                string            `json:"id"`
	Object            string            `json:"object"`
	Created           int64             `json:"created"`
	Model             string            `json:"model"`
	SystemFingerprint string            `json:"system_fingerprint"`
	Choices           []chatChunkChoice `json:"choices"`
	Usage             json.RawMessage   `json:"usage,omitempty"`
	Timings           *timings          `json:"timings,omitempty"`
}

type chatChunkChoice struct {
	Index        int       `json:"index"`
	Delta        chatDelta `json:"delta"`
	Logprobs     *string   `json:"logprobs"`
	FinishReason *string   `json:"finish_reason"`
}

type chatDelta struct {
	Role      string          `json:"role,omitempty"`
	Content   json.RawMessage `json:"content,omitempty"` // may be null
	ToolCalls []chatToolCall  `json:"tool_calls,omitempty"`
}

func (wk *work) completion(m chatMessage, finish string) []byte {
	m.Role = "assistant"
	return jsonOf(&chatCompletion{
		ID: wk.id, Object: "chat.completion", Created: wk.created, Model: wk.model,
		Choices: []chatChoice{{Message: m, FinishReason: finish}},
		Usage:   wk.usageOf(), SystemFingerprint: wk.engine, Timings: wk.timingsOf(),
	})
}

// chunk is one chunk of a stream; finish is empty except in the last one.
func (wk *work) chunk(d chatDelta, finish string) []byte {
	if wk.ollama {
		d.Role = "assistant"
	}
	c := wk.emptyChunk()
	c.Choices = []chatChunkChoice{{Delta: d}}
	if finish != "" {
		c.Choices[0].FinishReason = &finish
	}
	if wk.usage {
		c.Usage = json.RawMessage("null")
	} else if finish != "" {
		c.Timings = wk.timingsOf()
	}
	return jsonOf(c)
}

func (wk *work) emptyChunk() *chatChunk {
	return &chatChunk{
		ID: wk.id, Object: "chat.completion.chunk", Created: wk.created, Model: wk.model,
		SystemFingerprint: wk.engine, Choices: []chatChunkChoice{},
	}
}

// endChunks writes what follows the last token.
func (wk *work) endChunks(st *stream, finish string) {
	st.event("", wk.chunk(chatDelta{}, finish))
	if wk.usage {
		c := wk.emptyChunk()
		c.Usage, c.Timings = jsonOf(wk.usageOf()), wk.timingsOf()
		st.event("", jsonOf(c))
	}
	st.event("", []byte("[DONE]"))
}

// chat is an answer in text.
type chat struct {
	*work
	frame eventFrame
}

func (c *chat) whole() (string, []byte) {
	return "application/json", c.completion(chatMessage{Content: new(c.text())}, c.finish("length", "stop"))
}

func (c *chat) begin(st *stream) {
	st.event("", c.chunk(chatDelta{Role: "assistant", Content: json.RawMessage(`""`)}, ""))
	c.frame = newEventFrame(c.chunk(chatDelta{Content: framePiece}, ""))
}

func (c *chat) tokens(st *stream, i, n int) { c.frame.write(st, c.work, i, n) }

func (c *chat) end(st *stream) { c.endChunks(st, c.finish("length", "stop")) }

// toolCall is an answer that calls a function with the text as its argument.
type toolCall struct {
	*work
	tool string
}

func (c *toolCall) call() chatToolCall {
	return chatToolCall{ID: "call-" + c.id, Type: "function", Function: chatFunction{Name: c.tool}}
}

func (c *toolCall) whole() (string, []byte) {
	call := c.call()
	call.Function.Arguments = c.arguments(0, c.out)
	return "application/json", c.completion(chatMessage{ToolCalls: []chatToolCall{call}}, "tool_calls")
}

// arguments is the part of {"text":"…"} that the tokens from i until before n add.
func (c *toolCall) arguments(i, n int) string {
	var s strings.Builder
	if i == 0 {
		s.WriteString(`{"text":"`)
	}
	s.WriteString(c.piece(i, n))
	if n == c.out {
		s.WriteString(`"}`)
	}
	return s.String()
}

func (c *toolCall) begin(st *stream) {
	call := c.call()
	call.Index = new(0)
	d := chatDelta{Role: "assistant", Content: json.RawMessage("null"), ToolCalls: []chatToolCall{call}}
	st.event("", c.chunk(d, ""))
}

func (c *toolCall) tokens(st *stream, i, n int) {
	call := chatToolCall{Index: new(0), Function: chatFunction{Arguments: c.arguments(i, n)}}
	st.event("", c.chunk(chatDelta{ToolCalls: []chatToolCall{call}}, ""))
}

func (c *toolCall) end(st *stream) { c.endChunks(st, "tool_calls") }

// An eventFrame is an event that is the same for every token except for the text: encoding it once
// keeps a stream cheap.
type eventFrame struct {
	before, after []byte
}

// framePiece is a placeholder for the text in a frame: a string that JSON escapes and that no text contains.
var framePiece = json.RawMessage(`"\u0000"`)

func newEventFrame(data []byte) eventFrame {
	before, after, _ := bytes.Cut(data, framePiece[1:len(framePiece)-1])
	return eventFrame{append([]byte("data: "), before...), append(after, "\n\n"...)}
}

func (f eventFrame) write(st *stream, wk *work, i, n int) {
	st.buf = append(st.buf[:0], f.before...)
	st.buf = appendTokens(st.buf, wk.hash, i, n)
	st.buf = append(st.buf, f.after...)
	st.write(st.buf)
}
