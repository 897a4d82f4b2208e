package engine

import (
	"cmp"
	"encoding/json"
	"errors"
)

// A modelList is the answer of /v1/models, with the fields that some engines add to OpenAI's.
type modelList struct {
	Data     []listedModel `json:"data"`
	ServedBy string        `json:"served_by"` // a gateway of Pulley, which passes on what its engines say of themselves
}

type listedModel struct {
	ID      string `json:"id"`
	OwnedBy string `json:"owned_by"`
	State   string `json:"state"` // LM Studio, as the next two
	// Numbers of tokens. The model is loaded with a part of what it could have.
	LoadedContext json.RawMessage `json:"loaded_context_length"`
	MaxContext    json.RawMessage `json:"max_context_length"`
	Status        struct {
		Value string `json:"value"` // llama.cpp as a router
	} `json:"status"`
}

var errNoList = errors.New("not a list of models")

func readModels(body []byte, st *Status) error {
	return readModelList(body, st, func(m listedModel) bool { return m.Status.Value == "" || m.Status.Value == "loaded" })
}

// readModelsUnloaded is for engines that report on another page which models are loaded.
func readModelsUnloaded(body []byte, st *Status) error {
	return readModelList(body, st, func(listedModel) bool { return false })
}

func readLMStudioModels(body []byte, st *Status) error {
	if err := readModelList(body, st, func(m listedModel) bool { return m.State == "loaded" }); err != nil {
		return err
	}
	var list modelList
	if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	for i, m := range list.Data {
		st.Models[i].Context = cmp.Or(counted(m.LoadedContext), counted(m.MaxContext))
	}
	return nil
}

func readModelList(body []byte, st *Status, loaded func(listedModel) bool) error {
	var list modelList
	if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	if list.Data == nil {
		return errNoList
	}
	st.Models = []Model{}
	for _, m := range list.Data {
		st.Models = append(st.Models, Model{Name: m.ID, Loaded: loaded(m)})
	}
	return nil
}

type llamaSwapModels struct {
	Running []struct {
		Model string `json:"model"`
		State string `json:"state"`
	} `json:"running"`
}

// readLlamaSwapRunning reads the models whose server is running.
func readLlamaSwapRunning(list llamaSwapModels, st *Status) {
	st.Models = []Model{}
	for _, m := range list.Running {
		st.Models = append(st.Models, Model{Name: m.Model, Loaded: m.State == "ready"})
	}
}
