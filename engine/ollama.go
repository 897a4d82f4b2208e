package engine

import "encoding/json"

// readOllamaModels reads every model that Ollama could load.
func readOllamaModels(body []byte, st *Status) error { return readOllama(body, st, false) }

// readOllamaLoaded reads the models that are in memory. The page reports neither how many requests
// run nor how many may: OLLAMA_NUM_PARALLEL is not available.
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
