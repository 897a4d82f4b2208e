package sim

var inferEndpoint = endpoint{
	idPrefix: "infer-",
	decodes:  true,
	needs:    "inputs",
	needed:   func(b *body) bool { return b.Inputs != nil },
	answer:   func(b *body, wk *work) answer { return &inference{work: wk, id: b.ID} },
}

// inference is an answer in KServe's version 2 protocol: the text as one string. The path names the model.
type inference struct {
	*work
	id string // set by the client
}

func (p *inference) whole() (string, []byte) {
	id := p.id
	if id == "" {
		id = p.work.id
	}
	return "application/json", jsonOf(object{
		"model_name": p.model, "model_version": "1", "id": id,
		"outputs": []any{object{
			"name": "text_output", "datatype": "BYTES", "shape": []int{1}, "data": []string{p.text()},
		}},
	})
}
