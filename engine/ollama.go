package engine

import "encoding/json"

// readOllamaModels takes all that Ollama could load.
func readOllamaModels(body []byte, st *Status) error { return readOllama(body, st, false) }

// readOllamaLoaded takes what is in memory now. How many requests run it does not say, nor how many may:
// OLLAMA_NUM_PARALLEL is not told.
func readOllamaLoaded(body []byte, st *Status) error { return readOllama(body, st, true) }

func readOllama(body []byte, st *Status, loaded bool) error {
	var list struct {
		Models []struct {
			Name string   `json:"name"`
			VRAM *float64 `json:"size_vram"`
		} `json:"models"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	st.Models = []Model{}
	for _, m := range list.Models {
		st.Models = append(st.Models, Model{Name: m.Name, Loaded: loaded, VRAM: whole(m.VRAM)})
	}
	return nil
}
