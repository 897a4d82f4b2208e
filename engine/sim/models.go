package sim

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// owner is who /v1/models says owns the models: most engines name themselves.
func (s *Engine) owner() string {
	switch s.cfg.Dialect {
	case engine.DialectVLLM, engine.DialectSGLang, engine.DialectLlamaSwap:
		return string(s.cfg.Dialect)
	case engine.DialectLlamaCpp:
		return "llamacpp"
	case engine.DialectTGI:
		return s.cfg.Models[0]
	case engine.DialectOllama:
		return "library"
	case engine.DialectLMStudio:
		return "organization_owner"
	case engine.DialectTRTLLM:
		return "tensorrt_llm"
	case engine.DialectTriton:
		return "Triton Inference Server"
	}
	return "pulley-sim"
}

// card is an entry of /v1/models.
func (s *Engine) card(model string) object {
	c := object{"id": model, "object": "model", "created": s.begun.Unix(), "owned_by": s.owner()}
	switch s.cfg.Dialect {
	case engine.DialectVLLM, engine.DialectSGLang:
		c["root"], c["parent"] = model, nil
		if s.cfg.Context > 0 {
			c["max_model_len"] = s.cfg.Context
		}
		if s.cfg.Dialect == engine.DialectVLLM {
			c["permission"] = []object{s.permission()}
		}
	case engine.DialectTGI:
		c["created"] = 0
	case engine.DialectLlamaCpp:
		c["aliases"], c["tags"] = []string{}, []string{}
		meta := object{"vocab_type": 2, "n_vocab": 65536, "n_embd": 4096, "n_params": 8_000_000_000, "size": 5_000_000_000, "ftype": "Q4_K - Medium"}
		if s.cfg.Context > 0 {
			meta["n_ctx"], meta["n_ctx_train"] = s.cfg.Context, s.cfg.Context
		}
		c["meta"] = meta
	case engine.DialectLMStudio:
		delete(c, "created")
	case engine.DialectLlamaSwap:
		c["status"] = object{"value": s.swapStatus(model)}
	}
	return c
}

func (s *Engine) permission() object {
	return object{
		"id": "modelperm-" + s.cfg.Name, "object": "model_permission", "created": s.begun.Unix(), "allow_create_engine": false, "allow_sampling": true,
		"allow_logprobs": true, "allow_search_indices": false, "allow_view": true, "allow_fine_tuning": false, "organization": "*", "group": nil,
		"is_blocking": false,
	}
}

func (s *Engine) swapStatus(model string) string {
	if s.loader.states(s.cfg.Models)[model] == "ready" {
		return "loaded"
	}
	return "unloaded"
}

func (s *Engine) listModels(w http.ResponseWriter, _ *http.Request) {
	cards := []object{}
	for _, m := range s.cfg.Models {
		cards = append(cards, s.card(m))
	}
	list := object{"object": "list", "data": cards}
	if s.cfg.Dialect == engine.DialectLlamaCpp {
		list["models"] = s.llamacppModels()
	}
	writeJSON(w, http.StatusOK, list)
}

// modelNamed finds the model that a client names. Ollama takes a name in any case, and without its tag if that is latest.
// Engines that have one model and do not look at the name serve it under any.
func (s *Engine) modelNamed(name string) (model string, ok bool) {
	if slices.Contains(s.cfg.Models, name) {
		return name, true
	}
	switch s.cfg.Dialect {
	case engine.DialectOllama:
		plain := func(name string) string { return strings.TrimSuffix(strings.ToLower(name), ":latest") }
		if i := slices.IndexFunc(s.cfg.Models, func(m string) bool { return plain(m) == plain(name) }); i >= 0 {
			return s.cfg.Models[i], true
		}
	case engine.DialectSGLang, engine.DialectTGI, engine.DialectLlamaCpp, engine.DialectTRTLLM:
		if len(s.cfg.Models) == 1 {
			return s.cfg.Models[0], true
		}
	}
	return "", false
}

func (s *Engine) showModel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	model, ok := s.modelNamed(id)
	if !ok {
		s.unknownModel(id, r.URL.Path).write(w, false)
		return
	}
	writeJSON(w, http.StatusOK, s.card(model))
}

// llamacppModels is the list in Ollama's form that llama.cpp puts beside OpenAI's.
func (s *Engine) llamacppModels() []object {
	list := []object{}
	for _, m := range s.cfg.Models {
		list = append(list, object{
			"name": m, "model": m, "modified_at": "", "size": "", "digest": "", "type": "model", "description": "", "tags": []string{""},
			"capabilities": []string{"completion"}, "parameters": "",
			"details": object{"parent_model": "", "format": "gguf", "family": "", "families": []string{""}, "parameter_size": "", "quantization_level": ""},
		})
	}
	return list
}

// ollamaDetails are what Ollama says of every model.
func (s *Engine) ollamaModel(name string) object {
	return object{
		"name": name, "model": name, "size": 1 << 30, "digest": "a80c4f17",
		"details": object{"parent_model": "", "format": "gguf", "family": "llama", "families": []string{"llama"}, "parameter_size": "3.2B", "quantization_level": "Q4_K_M"},
	}
}

func (s *Engine) ollamaModels(state) any {
	models := []object{}
	for _, name := range s.cfg.Models {
		m := s.ollamaModel(name)
		m["modified_at"], m["capabilities"] = s.begun.UTC().Format(time.RFC3339), []string{"completion"}
		models = append(models, m)
	}
	return object{"models": models}
}

// ollamaLoaded lists the models in memory. Ollama lists a model from the start of its load.
func (s *Engine) ollamaLoaded(state) any {
	states := s.loader.states(s.cfg.Models)
	models := []object{}
	for _, name := range s.cfg.Models {
		if states[name] == "" {
			continue
		}
		m := s.ollamaModel(name)
		m["expires_at"], m["size_vram"], m["context_length"] = time.Now().Add(s.cfg.KeepAlive).UTC().Format(time.RFC3339), 1<<30, 4096
		if s.cfg.Context > 0 {
			m["context_length"] = s.cfg.Context
		}
		models = append(models, m)
	}
	return object{"models": models}
}

// lmStudioModels is the list of LM Studio's own API: the only page on which it says what is loaded.
func (s *Engine) lmStudioModels(state) any {
	states := s.loader.states(s.cfg.Models)
	models := []object{}
	for _, name := range s.cfg.Models {
		m := object{
			"id": name, "object": "model", "type": "llm", "publisher": "pulley", "arch": "sim", "compatibility_type": "gguf", "quantization": "Q4_K_M",
			"state": "not-loaded", "max_context_length": 131072,
		}
		if states[name] == "ready" || states[name] == "stopping" {
			m["state"], m["loaded_context_length"] = "loaded", 4096
			if s.cfg.Context > 0 {
				m["loaded_context_length"] = s.cfg.Context
			}
		}
		models = append(models, m)
	}
	return object{"object": "list", "data": models}
}
