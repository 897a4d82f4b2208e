package sim

var messagesEndpoint = endpoint{
	idPrefix:  "msg-",
	anthropic: true,
	decodes:   true,
	needs:     "messages",
	needed:    func(b *body) bool { return b.Messages != nil },
	answer:    func(_ *body, wk *work) answer { return &message{work: wk} },
}

// message is an answer of Anthropic's API.
type message struct {
	*work
}

func (m *message) state(content []any, stopReason any, out int) object {
	usage := object{"input_tokens": m.in, "output_tokens": out}
	if m.caches { // this API counts them separately
		usage["input_tokens"], usage["cache_read_input_tokens"] = m.in-m.cached, m.cached
	}
	return object{
		"id": m.id, "type": "message", "role": "assistant", "model": m.model, "content": content,
		"stop_reason": stopReason, "stop_sequence": nil,
		"usage": usage,
	}
}

func (m *message) stopReason() string { return m.finish("max_tokens", "end_turn") }

func (m *message) whole() (string, []byte) {
	content := []any{object{"type": "text", "text": m.text()}}
	return "application/json", jsonOf(m.state(content, m.stopReason(), m.out))
}

func (m *message) event(st *stream, name string, data object) {
	data["type"] = name
	st.event(name, jsonOf(data))
}

func (m *message) begin(st *stream) {
	m.event(st, "message_start", object{"message": m.state([]any{}, nil, 1)})
	m.event(st, "content_block_start", object{"index": 0, "content_block": object{"type": "text", "text": ""}})
}

func (m *message) tokens(st *stream, i, n int) {
	m.event(st, "content_block_delta", object{
		"index": 0, "delta": object{"type": "text_delta", "text": m.piece(i, n)},
	})
}

func (m *message) end(st *stream) {
	m.event(st, "content_block_stop", object{"index": 0})
	m.event(st, "message_delta", object{
		"delta": object{"stop_reason": m.stopReason(), "stop_sequence": nil},
		"usage": object{"output_tokens": m.out},
	})
	m.event(st, "message_stop", object{})
}
