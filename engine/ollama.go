package engine

type ollamaModels struct {
	Models []struct {
		Name string   `json:"name"`
		VRAM *float64 `json:"size_vram"`
	} `json:"models"`
}

// readOllamaModels reads every model that Ollama could load.
func readOllamaModels(list ollamaModels, st *Status) { list.read(st, false) }

// readOllamaLoaded reads the models that are in memory. The page reports neither how many requests run nor how many
// may: OLLAMA_NUM_PARALLEL is not available.
func readOllamaLoaded(list ollamaModels, st *Status) { list.read(st, true) }

func (list ollamaModels) read(st *Status, loaded bool) {
	st.Models = []Model{}
	for _, m := range list.Models {
		st.Models = append(st.Models, Model{Name: m.Name, Loaded: loaded, VRAM: whole(m.VRAM)})
	}
}
