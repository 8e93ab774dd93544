module github.com/pgidem/pgidem/adapters/echo

go 1.26.0

require (
	github.com/labstack/echo/v5 v5.3.1
	go.uber.org/goleak v1.3.0
)

require golang.org/x/time v0.15.0 // indirect
