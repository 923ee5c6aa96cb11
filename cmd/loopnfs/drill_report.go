package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"loopnfs/harness"
)

func newDrillReportCommand() *cobra.Command {
	var html string
	cmd := &cobra.Command{
		Use:   "report RESULTS.json... --html FILE",
		Short: "Make one page of the results of several runs",
		Long: `Reads what drill --json has written, once or several times, and writes one HTML
page on all of it, which needs no network. Where a drill was run several times on
the same server and kernel, the table counts: survived 3/3.`,
		Example: `  loopnfs drill report night-1.json night-2.json night-3.json --html report.html`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if html == "" {
				return usagef("--html FILE is missing: where the page goes")
			}
			results, err := readResults(args)
			if err != nil {
				return err
			}
			return writeHTML(html, results)
		},
	}
	cmd.Flags().StringVar(&html, "html", "", "write the page to `FILE`")
	return cmd
}

// readResults returns what all of the files hold, one after another.
func readResults(files []string) ([]harness.Result, error) {
	var all []harness.Result
	for _, name := range files {
		results, err := readResultFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, results...)
	}
	return all, nil
}

func readResultFile(name string) ([]harness.Result, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	results, err := harness.ReadJSON(f)
	if err != nil {
		return nil, fmt.Errorf("%s does not hold results of drill --json: %w", name, err)
	}
	return results, nil
}
