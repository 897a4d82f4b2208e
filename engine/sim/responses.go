package sim

var responsesEndpoint = endpoint{
	idPrefix: "resp-",
	decodes:  true,
	needs:    "input",
	needed:   func(b *body) bool { return b.Input != nil },
	answer:   func(_ *body, wk *work) answer { return &response{work: wk} },
}

// response is an answer of the Responses API: one message with one text.
type response struct {
	*work
	sequence int // of the next event
}

type object = map[string]any

func (p *response) whole() (string, []byte) {
	return "application/json", jsonOf(p.state("completed"))
}

// state is the response object, complete or still empty.
func (p *response) state(status string) object {
	output, usage := []any{}, any(nil)
	if status == "completed" {
		output = []any{p.message(status)}
		usage = object{
			"input_tokens": p.in, "input_tokens_details": object{"cached_tokens": p.cached},
			"output_tokens": p.out, "output_tokens_details": object{"reasoning_tokens": 0},
			"total_tokens": p.in + p.out,
		}
	}
	return object{
		"id": p.id, "object": "response", "created_at": p.created, "model": p.model, "status": status,
		"output": output, "usage": usage, "system_fingerprint": p.engine,
		"error": nil, "incomplete_details": nil, "instructions": nil, "metadata": object{},
		"parallel_tool_calls": true, "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": []any{},
		"max_output_tokens": p.out, "previous_response_id": nil, "truncation": "disabled",
	}
}

func (p *response) message(status string) object {
	content := []any{}
	if status == "completed" {
		content = []any{p.part(p.text())}
	}
	return object{"type": "message", "id": p.itemID(), "status": status, "role": "assistant", "content": content}
}

func (p *response) itemID() string { return "msg-" + p.id }

func (p *response) part(text string) object {
	return object{"type": "output_text", "text": text, "annotations": []any{}, "logprobs": []any{}}
}

func (p *response) event(st *stream, name string, data object) {
	data["type"], data["sequence_number"] = name, p.sequence
	p.sequence++
	st.event(name, jsonOf(data))
}

// inPart is an event about the only text.
func (p *response) inPart(data object) object {
	data["item_id"], data["output_index"], data["content_index"] = p.itemID(), 0, 0
	return data
}

func (p *response) begin(st *stream) {
	p.event(st, "response.created", object{"response": p.state("in_progress")})
	p.event(st, "response.in_progress", object{"response": p.state("in_progress")})
	p.event(st, "response.output_item.added", object{"output_index": 0, "item": p.message("in_progress")})
	p.event(st, "response.content_part.added", p.inPart(object{"part": p.part("")}))
}

func (p *response) tokens(st *stream, i, n int) {
	p.event(st, "response.output_text.delta", p.inPart(object{"delta": p.piece(i, n), "logprobs": []any{}}))
}

func (p *response) end(st *stream) {
	p.event(st, "response.output_text.done", p.inPart(object{"text": p.text(), "logprobs": []any{}}))
	p.event(st, "response.content_part.done", p.inPart(object{"part": p.part(p.text())}))
	p.event(st, "response.output_item.done", object{"output_index": 0, "item": p.message("completed")})
	p.event(st, "response.completed", object{"response": p.state("completed")})
}
