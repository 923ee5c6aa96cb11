package main

import "fmt"

// script is what happens besides the load.
type script struct {
	// prepare is called once the mount is there, reopen once it is there again,
	// finish before it goes.
	prepare, reopen, finish func(*run) error
	// during runs beside the load, which has not ended before it returns.
	during func(*run) error
}

func nothing(*run) error { return nil }

func (s script) withDefaults() script {
	for _, f := range []*func(*run) error{&s.prepare, &s.reopen, &s.finish, &s.during} {
		if *f == nil {
			*f = nothing
		}
	}
	return s
}

// scripts by name; "" is the load alone.
var scripts = map[string]script{
	"": {},
}

func findScript(name string) (script, error) {
	s, ok := scripts[name]
	if !ok {
		return s, fmt.Errorf("no script is called %q", name)
	}
	return s.withDefaults(), nil
}
